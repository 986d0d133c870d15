"""How teacher and student read the rows of a run: texts that lose their end, and tokenizers that differ.

Told before anything is loaded, since both change what the figures mean and neither shows in them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_neo.data.notes import plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS_AT_ONCE = 4096
_COMPARED_TEXTS = 1000
_SPARE_TOKENS = 16
"""More than any tokenizer puts around a text or a pair."""
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What the two tokenizers make of the same texts.

    Attributes:
        teacher_truncated: texts that are longer than the limit for the teacher.
        student_truncated: the same for the student.
        same_tokens: both have the same vocabulary and read the same tokens in a thousand texts.
        notes: what of this a user should know, one sentence each.
    """

    teacher_truncated: int
    student_truncated: int
    same_tokens: bool
    notes: tuple[str, ...]


def read_both(
    teacher: "PreTrainedTokenizerBase",
    student: "PreTrainedTokenizerBase",
    texts: Sequence[Texts],
    max_length_tokens: int,
    *,
    prompted: bool = False,
) -> Reading:
    """Tokenise as `batching.encode` will, and count what is too long; texts that cannot be are not tokenised.

    Args:
        teacher: the tokenizer saved with the teacher.
        student: that saved with the student.
        texts: one or two strings each.
        max_length_tokens: the recipe's limit.
        prompted: the teacher reads each text inside a prompt, where the limit holds for the text alone.
    """
    compared = texts[:: max(1, len(texts) // _COMPARED_TEXTS)]
    same = teacher.get_vocab() == student.get_vocab() and _tokens(teacher, compared) == _tokens(student, compared)
    long = [text for text in texts if _may_be_longer(text, max_length_tokens)]
    lost_teacher = lost_student = 0
    for start in range(0, len(long), _TEXTS_AT_ONCE):
        chunk = long[start : start + _TEXTS_AT_ONCE]
        of_student = [len(tokens) for tokens in _tokens(student, chunk)]
        of_teacher = of_student
        if prompted:
            of_teacher = list(_longest_parts(teacher, chunk))
        elif not same:
            of_teacher = [len(tokens) for tokens in _tokens(teacher, chunk)]
        lost_student += sum(length > max_length_tokens for length in of_student)
        lost_teacher += sum(length > max_length_tokens for length in of_teacher)
    notes = _notes(len(texts), lost_teacher, lost_student, max_length_tokens)
    if not same:
        sizes = f"{len(teacher):,} and {len(student):,} tokens"
        notes += (
            f"teacher and student read different tokens (tokenizers of {sizes}); a classifier may, since only the "
            "logits of the classes are compared",
        )
    return Reading(lost_teacher, lost_student, same, notes)


def _may_be_longer(text: Texts, limit: int) -> bool:
    """Whether a text may have more tokens than the limit: in ASCII no token is shorter than a character."""
    return not all(map(str.isascii, text)) or sum(map(len, text)) + _SPARE_TOKENS > limit


def _tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Texts]) -> list[list[int]]:
    columns = [list(column) for column in zip(*texts, strict=True)]
    found: list[list[int]] = tokenizer(*columns, return_attention_mask=False, verbose=False)["input_ids"]
    return found


def _longest_parts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Texts]) -> Iterator[int]:
    """Tokens of each text's longest part, special tokens left out."""
    columns = [
        tokenizer(list(column), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for column in zip(*texts, strict=True)
    ]
    return (max(map(len, parts)) for parts in zip(*columns, strict=True))


def _notes(texts: int, teacher: int, student: int, limit: int) -> tuple[str, ...]:
    if not teacher and not student:
        return ()
    who = {
        "teacher and student": teacher if teacher == student else 0,
        "the teacher": teacher if teacher != student else 0,
        "the student": student if teacher != student else 0,
    }
    counts = " and ".join(f"{count:,} for {name}" for name, count in who.items() if count)
    longer = f"longer than data.max_length_tokens = {limit} and lose their end"
    return (f"of {plural(texts, 'text')} some are {longer}: {counts}",)

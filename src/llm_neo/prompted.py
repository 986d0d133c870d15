"""A teacher that is a prompted language model: the classes are words that may come next, and nothing is trained.

Shapes: N texts, C classes, F content-free inputs, K tokens of a label word, B texts of a batch, L tokens of each, V
tokens of the vocabulary, H hidden width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_neo.batching import Batch, TokenRows, encode
from llm_neo.errors import InputError
from llm_neo.evaluate import score_rows
from llm_neo.models import load
from llm_neo.models.load import LoadedModel
from llm_neo.progress import Progress
from llm_neo.recipe.tree import Prompt
from llm_neo.teacher import TeacherBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs without content (Zhao et al. 2021, "Calibrate Before Use", section 3)."""


@dataclass(frozen=True)
class PromptTeacher:
    """A language model whose next words after a prompt are the classes' label words.

    The logit of a class is the log-probability of its label word, all of its tokens, after the prompt; calibrated,
    less that of the word after the same prompt around content-free inputs (Zhao et al. 2021, section 3).
    """

    loaded: LoadedModel
    prompt: Prompt
    words: tuple[tuple[int, ...], ...]
    base: TeacherBase
    fresh_head: bool = False

    def score(self, ids: Sequence[str], texts: Sequence[tuple[str, ...]], progress: Progress) -> torch.Tensor:
        """float32 logits on the CPU, (N, C), columns in label order."""
        logits_NC = self._log_probabilities(ids, texts, progress)
        if not self.prompt.calibrate:
            return logits_NC
        parts = len(texts[0]) if texts else 1
        empty = [(content,) * parts for content in CONTENT_FREE]
        names = [f"content-free:{content!r}" for content in CONTENT_FREE]
        bias_FC = self._log_probabilities(names, empty, progress).log_softmax(dim=-1)
        # Not exp().mean().log(): a word less likely than e^-103 would give log 0, an infinite target.
        return logits_NC - (bias_FC.logsumexp(dim=0) - math.log(len(empty)))

    def _log_probabilities(
        self, ids: Sequence[str], texts: Sequence[tuple[str, ...]], progress: Progress
    ) -> torch.Tensor:
        """Log p(label word | prompt), (N, C)."""
        rows = self._encode_prompts(ids, texts)
        device = self.base.where.device
        if all(len(word) == 1 for word in self.words):
            first_C = torch.tensor([word[0] for word in self.words], device=device)
            return score_rows(self._next_token(first_C), rows, device, progress, label="teacher scores")
        columns = [
            score_rows(
                self._continuation(word),
                _extended(rows, word),
                device,
                progress,
                label=f"teacher scores {name!r}",
            )
            for word, name in zip(self.words, self.prompt.label_words, strict=True)
        ]
        return torch.cat(columns, dim=1)

    def _encode_prompts(self, ids: Sequence[str], texts: Sequence[tuple[str, ...]]) -> TokenRows:
        tokenizer, limit = self.loaded.tokenizer, self.base.max_length_tokens
        prompts = [(fill(self.prompt.template, [_cut(tokenizer, part, limit) for part in text]),) for text in texts]
        return encode(tokenizer, ids, prompts, max_length_tokens=self._room(tokenizer))

    def _room(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        frame = len(tokenizer(self.prompt.template, verbose=False)["input_ids"])
        return frame + 2 * self.base.max_length_tokens + 16

    def _next_token(self, first_C: torch.Tensor) -> Any:
        def forward(batch: Batch) -> torch.Tensor:
            hidden_BH = self._hidden(batch).flatten(0, 1)[batch.last_token]
            return self._log_softmax(hidden_BH)[:, first_C]

        return forward

    def _continuation(self, word: tuple[int, ...]) -> Any:
        word_K = torch.tensor(word, device=self.base.where.device)

        def forward(batch: Batch) -> torch.Tensor:
            hidden_BKH = self._hidden(batch)[:, -len(word) - 1 : -1]
            log_p_BKV = self._log_softmax(hidden_BKH)
            chosen = word_K[None, :, None].expand(len(log_p_BKV), -1, 1)
            return log_p_BKV.gather(-1, chosen).sum(dim=1)

        return forward

    def _hidden(self, batch: Batch) -> torch.Tensor:
        model: Any = self.loaded.model
        hidden_BLH: torch.Tensor = getattr(model, model.base_model_prefix)(
            input_ids=batch.input_ids, use_cache=False
        ).last_hidden_state
        return hidden_BLH

    def _log_softmax(self, hidden: torch.Tensor) -> torch.Tensor:
        head: Any = self.loaded.model.get_output_embeddings()
        log_p: torch.Tensor = head(hidden.to(head.weight.dtype)).float().log_softmax(dim=-1)
        return log_p


def fill(template: str, parts: Sequence[str]) -> str:
    """The template around a text, or around the two of a pair; braces in the text mean nothing."""
    names = ("{text}",) if len(parts) == 1 else ("{first}", "{second}")
    places = sorted((template.index(name), name, part) for name, part in zip(names, parts, strict=True))
    filled, start = "", 0
    for place, name, part in places:
        filled += template[start:place] + part
        start = place + len(name)
    return filled + template[start:]


def load_prompt_teacher(base: TeacherBase, prompt: Prompt) -> PromptTeacher:
    """A language model and the label words as its tokens.

    Raises:
        InputError: no language model, or label words that cannot tell the classes apart.
    """
    if len(prompt.label_words) != len(base.classes):
        raise InputError(
            f"teacher.prompt.label_words has {len(prompt.label_words)} words but the data has {len(base.classes)} "
            f"classes ({', '.join(base.classes[:6])}); give one per class, in that order"
        )
    loaded = load.load_language_model(
        base.folder,
        base.spec,
        base.where,
        max_length_tokens=base.max_length_tokens,
        trust_remote_code=base.trust_remote_code,
    )
    words = tuple(
        tuple(loaded.tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"])
        for word in prompt.label_words
    )
    for word, tokens in zip(prompt.label_words, words, strict=True):
        if not tokens or words.count(tokens) > 1:
            raise InputError(
                f"teacher.prompt.label_words: {word!r} is {'no token' if not tokens else 'the same tokens as another'} "
                "for this model; choose words that it can tell apart"
            )
    return PromptTeacher(loaded, prompt, words, base)


def _cut(tokenizer: "PreTrainedTokenizerBase", text: str, limit: int) -> str:
    """The text without what lies past `limit` tokens: the end of the prompt must stay."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]


def _extended(rows: TokenRows, word: tuple[int, ...]) -> TokenRows:
    """Every prompt with the label word's tokens after it."""
    tokens = [np.concatenate([rows[row], np.array(word, np.int64)]) for row in range(len(rows))]
    offsets = rows.offsets + np.arange(len(rows) + 1) * len(word)
    return TokenRows(rows.ids, np.concatenate(tokens), offsets)

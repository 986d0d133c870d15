"""A process that measures one thing and says what it found; started by `benchmarks.suite`, one at a time."""

import traceback
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.options import Options


def work(answer: Connection, job: str, options: Options, machine: dict[str, Any] | None) -> None:
    """Do a job and send what it found, or ("error", the reason).

    Args:
        answer: where to.
        job: "machine", "growth" or a variant's letter.
        options: the command line.
        machine: what the job "machine" found; None for that job itself.
    """
    try:
        found: tuple[str, Any] = ("found", _do(job, options, machine))
    except Exception as error:
        traceback.print_exc()
        found = ("error", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    answer.send(found)
    answer.close()


def _do(job: str, options: Options, machine: dict[str, Any] | None) -> Any:
    from benchmarks.scene import set_scene

    scene = set_scene(options)
    if machine is None:
        return _machine(scene)
    if job == "growth":
        from benchmarks.growth import curves
        from benchmarks.slope import BAR

        engine = options.growth_engine
        used = "fused" if engine == "captured" and scene.device.type == "cpu" else engine
        return {"device": scene.device.type, "engine": used, "bar": BAR, "curves": curves(scene, engine)}
    from benchmarks.measurement import measure
    from benchmarks.record import record

    return record(job, measure(job, scene), scene.workload, machine["setting"])


def _machine(scene: Any) -> dict[str, Any]:
    """What all variants share, and a few facts for the table's foot."""
    from benchmarks.rate import matmul_rate
    from benchmarks.setting import Setting
    from llm_neo.runtime import versions

    rate = matmul_rate(scene.models.teacher_config(), scene.effort.product_tokens, scene.dtype, scene.device)
    workload = scene.workload
    setting = Setting(
        device=scene.device.type,
        precision=str(scene.dtype).removeprefix("torch."),
        models=scene.models.name,
        matmul_rate=rate,
        versions=versions(),
    )
    facts = [
        f"models: {setting.models}; {setting.precision} but for a; rows: {workload.source}",
        f"an epoch: {workload.epoch.rows:,} rows, {workload.epoch.steps:,} steps of 16, "
        f"{workload.training_tokens:,.0f} tokens (mean {workload.rows.lengths.mean():.1f}), "
        f"{workload.epoch.evaluations} evaluations of {workload.epoch.validation_rows} rows",
        f"matrix products reach {rate / 1e12:,.3g} TFLOP/s here; `products` is the share of that rate",
        f"{setting.versions.get('gpu', setting.versions['processor'])}, torch {setting.versions['torch']}, "
        f"transformers {setting.versions['transformers']}, peft {setting.versions['peft']}, "
        f"bitsandbytes {setting.versions['bitsandbytes']}",
    ]
    return {"setting": setting, "facts": facts}

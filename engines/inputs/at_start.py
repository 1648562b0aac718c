"""What an attempt does before its work: identify the inputs, compare them with what must be, and record them."""

from __future__ import annotations

from dataclasses import replace

from engines.context import Input, InputsChangedError, StageContext
from engines.events.attempts import InputsRecorded
from engines.inputs.compare import InputChange, changes_of
from engines.inputs.record import (
    InputRecord,
    external_inputs,
    identify_inputs,
    read_record,
    require_pinned,
    stage_fingerprint,
    write_record,
)
from engines.run_dir.paths import RunDir
from engines.stage_file import StageFile
from recipes.stages.fields import StageFields

PHASE = "checking inputs"


def record_inputs(ctx: StageContext[StageFields], given: StageFile) -> None:
    """Identify the inputs by their content and record them; sets the fingerprint and the identities of `ctx`.

    Raises:
        InputsChangedError: an input is not the recorded one, and the operator did not accept it.
        OperatorError: a file of an input cannot be read, or the output of another run is not the one of the launch.
        StopRequested: the operator requested a stop while large files were read.
    """
    announced = False

    def progress(done: int, total: int) -> None:
        nonlocal announced
        if not announced:
            ctx.phase(PHASE)
            announced = True
        ctx.progress(done, total, "bytes")

    external = external_inputs(ctx.stage, given.inputs)
    if external:
        ctx.check_stop()
    records = identify_inputs(ctx.stage, given.inputs, progress)
    require_pinned(records, given.inputs)
    changes = _not_accepted(ctx, given, records)
    if changes:
        records = identify_inputs(ctx.stage, given.inputs, progress, cached=False)  # the cache does not decide
        changes = _not_accepted(ctx, given, records)
    if changes:
        raise InputsChangedError([line for change in changes for line in change.lines()])
    identities = {record.field: record.identity for record in records}
    ctx.fingerprint = stage_fingerprint(ctx.declared or ctx.stage, identities)
    by_field = {record.field: record for record in records}
    ctx.inputs = {field: _identified(item, by_field[field]) for field, item in ctx.inputs.items()}
    if external and ctx.world.is_first:
        write_record(RunDir(ctx.run_root).inputs_json(ctx.stage_name, ctx.attempt), records)
        summaries = [record.summary() for record in records]
        ctx.emit(
            InputsRecorded(stage=ctx.stage_name, attempt=ctx.attempt, inputs=summaries, fingerprint=ctx.fingerprint)
        )


def _identified(item: Input, record: InputRecord) -> Input:
    files = tuple((file.path, file.bytes, file.sha256) for file in record.files)
    return replace(item, manifest_sha256=record.sha256 or None, method=record.method, files=files)


def _not_accepted(ctx: StageContext[StageFields], given: StageFile, records: list[InputRecord]) -> list[InputChange]:
    """The inputs that differ from the expected record, without those whose present content was accepted."""
    expected = given.expected
    if expected is None:
        return []
    before = read_record(RunDir(ctx.run_root).inputs_json(ctx.stage_name, expected.attempt))
    changes = changes_of(ctx.stage_name, before, records, expected.journaled)
    return [change for change in changes if expected.accepted.get(change.field) != change.sha256]

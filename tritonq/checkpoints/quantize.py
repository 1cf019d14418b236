"""The quantize job: a checkpoint in, a quantized one out."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from ..model_config import ties_embeddings
from ..ops import quantize
from .checkpoint import of_source
from .job import Task, keep, put, run
from .native import Native, Record, expected, stored_names, to_tensors
from .quality import compare_quantized
from .rules import RULES_TEXT, Decision, Rules
from .source import Progress, Source, open_source, read_config
from .tensorfile import Entry, TensorFile
from .writer import FileWriter, Stored

# Endings of names of tensors that hold codes and scales: FP8 in blocks and DeepSeek, W8 and compressed-tensors' FP8, its packed formats,
# GPTQ and AWQ, LLM.int8 of bitsandbytes, gpt-oss.
_CODES_AND_SCALES = (("", "_scale_inv"), ("", "_scale"), ("_packed", "_scale"), ("qweight", "scales"), ("weight", "SCB"),
                     ("_blocks", "_scales"))  # fmt: skip


def quantize_checkpoint(
    src: str | Path,
    dst: str | Path,
    schemes,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Quantize the safetensors checkpoint ``src`` into the folder ``dst``; returns the report (also ``dst/tritonq_report.json``).

    ``schemes``, ``include``, ``exclude``: see :class:`tritonq.checkpoints.rules.Rules`. ``progress(done, total, name)`` is called
    with bytes of the source. Configuration and tokenizer files are carried along; the source is only read. ``dst`` may not be
    ``src``, inside it, or where its links lead.

    Raises:
        CheckpointError: a malformed source, one that is quantized already, nothing to quantize, more tensors than a file's header can
            name, or a ``dst`` that holds something else.
        InvalidProblemError: an unknown scheme, or a pattern that matches nothing.
    """
    source = open_source(src)
    rules = Rules.parse(schemes, include, exclude)
    config = read_config(source.files[0].path.parent)  # of a single file too, which carries none along
    _refuse_quantized(source, config)
    tied = ties_embeddings(config)
    decisions = rules.decide(source.entries, tied=tied)
    if not any(d.scheme for d in decisions.values()):
        raise CheckpointError(f"{source.path}: none of its {len(source)} tensors is quantized ({RULES_TEXT}); see --include")
    return run(source, dst, Quantize(source, rules, decisions, tied=tied), overwrite=overwrite, progress=progress)


class Quantize(Task):
    """Weights by their decisions, all else as it is."""

    target = Native()

    def __init__(self, source: Source, rules: Rules, decisions: dict[str, Decision], *, tied: bool):
        self.source, self.choices, self.decisions, self.tied = source, rules.to_json(), decisions, tied

    def layout(self, file: TensorFile) -> tuple[dict[str, Record], Stored]:
        records, stored = {}, {}
        for entry in file.entries.values():
            record = self._record(entry)
            if record is None:
                stored[entry.name] = entry.dtype, entry.shape
                continue
            clash = next((other for other in stored_names(entry.name) if other != entry.name and other in self.source), None)
            if clash is not None:
                raise CheckpointError(
                    f"{self.source.path}: quantizing {entry.name!r} writes {clash!r}, a tensor that exists: it looks quantized already; "
                    f"--exclude {entry.name!r} keeps it"
                )
            records[entry.name] = record
            stored |= expected(entry.name, record)
        return records, stored

    def write(self, file: TensorFile, entry: Entry, writer: FileWriter) -> dict:
        record = self._record(entry)
        if record is None:
            return keep(file, entry, writer, self.decisions[entry.name].reason)
        matrix = file.read(entry.name).reshape(record.matrix_shape)
        q = quantize(matrix, record.scheme)
        return put(entry.name, to_tensors(entry.name, q), record, record, entry.nbytes, writer, compare_quantized(matrix, q))

    def _record(self, entry: Entry) -> Record | None:
        scheme = self.decisions[entry.name].scheme
        return Record(scheme=scheme, shape=entry.shape, dtype=entry.torch_dtype) if scheme else None


def _refuse_quantized(source: Source, config: dict) -> None:
    way_out = "start from the original weights"
    method = config.get("quantization_config")
    if method is not None:
        name = method.get("quant_method", "?") if isinstance(method, dict) else "?"
        raise CheckpointError(f"{source.path}: is quantized already (config.json: quant_method {name!r}); {way_out}")
    known = of_source(source)
    if known.records:
        raise CheckpointError(f"{source.path}: is a {known.family} checkpoint already; {way_out}")
    for name, file in source.owner.items():
        scales = (name.removesuffix(codes) + suffix for codes, suffix in _CODES_AND_SCALES if name.endswith(codes))
        scale = None if file.entries[name].is_float else next((scale for scale in scales if scale in source), None)
        if scale is not None:
            what = f"tensor {name!r} is {file.entries[name].dtype}, its scales are in {scale!r}"
            raise CheckpointError(f"{source.path}: is quantized already ({what}); {way_out}")

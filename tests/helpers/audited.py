"""What the audit's tests look at: drawn samples, and findings as text."""

from __future__ import annotations

from pathlib import Path

from anytext2.core.batch import Batch, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.checks.batch_checks import Finding

SIZE = 128


def drawn_dataset(folder: Path) -> AnyWordDataset:
    """Twelve pictures with one line or two."""
    write_dataset(folder, 12, SyntheticConfig(size=SIZE, line_weights=(0, 0.5, 0.5)), seed=3)
    records, _ = load_records([folder / "data.json"])
    return AnyWordDataset(records, DatasetConfig(resolution=SIZE), 0, load_font_table())


def lined_batch(dataset: AnyWordDataset) -> Batch:
    """Two samples with two lines or more, the first one edited, the second one not."""
    samples = [dataset.sample(i, epoch) for i in range(len(dataset)) for epoch in range(4)]
    lined = [s for s in samples if s.n_lines >= 2]
    edited = next(s for s in lined if s.editing)
    return collate([edited, next(s for s in lined if not s.editing and s.index != edited.index)]).normalized()


def said(findings: list[Finding]) -> str:
    return "\n".join(str(finding) for finding in findings)

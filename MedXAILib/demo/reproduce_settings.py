"""The settings of `medxai reproduce dream`; without torch, so that the command can tell them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MedXAIError
from ..settings import Settings, setting

#: What ``--quick`` changes: a look at whether it works, no figures to quote.
QUICK = dict(
    probabilities=(0.0, 50.0, 100.0), seeds=(0, 1), cases=40, test_cases=20, patients=8, starts=1, steps=300, dream_steps=60
)  # fmt: skip
_TOLD = ", ".join(
    f"--{name.replace('_', '-')} {' '.join(f'{v:g}' for v in value) if isinstance(value, tuple) else value}"
    for name, value in QUICK.items()
)


@dataclass(frozen=True)
class ReproduceSettings(Settings):
    """Settings of `reproduce_dream`; all were fixed on phantoms with seeds below 1000."""

    experiments: tuple[str, ...] = setting(
        ("marking", "tumours"), "What to run: marking (section 3.1, Fig. 4), tumours (section 3.2, Fig. 5).", choices=("marking", "tumours"),
    )  # fmt: skip
    probabilities: tuple[float, ...] = setting(
        (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 80.0, 90.0, 98.0, 100.0), "Probabilities of the marking; 0, the baseline, among them.", low=0, high=100, unit="%",
    )  # fmt: skip
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4), "Trainings of each network, by their seeds.", low=0, high=2**31 - 1
    )
    cases: int = setting(120, "Phantoms to train on, three slices each: seeds from 0.", low=1, high=1000)
    test_cases: int = setting(60, "Phantoms to judge on, one slice each: seeds from 1000.", low=1, high=10**6)
    patients: int = setting(20, "Healthy livers to dream from: seeds from 1000.", low=1, high=10**6)
    starts: int = setting(
        3, "Realisations of white noise to dream from, the same for every network: seeds from 1000.", low=1, high=1000
    )
    steps: int = setting(600, "Optimiser steps of a training.", low=1, high=10**7)
    filters: int = setting(
        8, "Filters of the U-Net's first level; each level below has twice as many.", low=1, high=1024
    )
    dream_steps: int = setting(100, "Steps of a dream.", low=1, high=100000)
    step_size: float = setting(0.02, "α of a dream, in network units.", low=1e-9, high=1e9, title="Step size α")
    quick: bool = setting(False, f"A look in ten minutes, no figures to quote: {_TOLD}.")
    device: str = setting("cpu", "Where to compute: auto, cpu, cuda, cuda:N or mps.")

    def __post_init__(self):
        super().__post_init__()
        for name in ("experiments", "probabilities", "seeds"):
            if not getattr(self, name):
                raise MedXAIError(f"--{name} is empty; leave it out for the default, or name at least one.")
            if name != "experiments":
                object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if "marking" in self.experiments and (0 not in self.probabilities or len(self.probabilities) < 2):
            raise MedXAIError(
                "--probabilities must hold 0, the baseline that Dice is compared with, and at least one more."
            )

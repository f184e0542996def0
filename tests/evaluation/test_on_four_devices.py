"""Samples, likelihoods and the judge on meshes of four simulated devices."""

import pathlib
import subprocess
import sys

import pytest

import programs

pytestmark = pytest.mark.slow


def test_samples_and_figures_are_the_same_on_every_mesh():
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "on_four_devices.py")],
        capture_output=True,
        text=True,
        cwd=here.parent.parent,
        env=programs.environment(),
        timeout=600,
    )
    assert "the same on every mesh" in done.stdout, done.stderr[-3000:]

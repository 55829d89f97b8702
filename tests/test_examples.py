"""The examples run, and what they print is right."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.places import ROOT
from PIL import Image


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(name: str, folder: Path, *flags: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_minimal_learns_a_density_that_integrates_to_one(tmp_path):
    pytest.importorskip("matplotlib")
    flags = ["--steps=1500", "--grid=72", f"--out={tmp_path / 'moons.png'}"]
    text = printed("minimal", tmp_path, *flags)
    integral = float(re.search(r"integral over the plane: (\S+)", text)[1])
    assert integral == pytest.approx(1, abs=1e-2)
    # A Gaussian with the moons' covariance costs 2.48 nats.
    exact = float(re.search(r"-log p, exact: (\S+)", text)[1])
    bound = float(re.search(r"-log p, bound: (\S+)", text)[1])
    assert "two models" in text
    assert exact < 2.3
    assert bound < 2.3
    with Image.open(tmp_path / "moons.png") as picture:
        assert np.asarray(picture).std() > 10, "an empty picture"


@pytest.mark.long
@pytest.mark.slow
def test_own_network_comes_near_a_density_that_is_known(tmp_path):
    text = printed("own_network", tmp_path, "--steps=2000")
    for name in ("exact", "bound"):
        found = re.search(rf"-log p, {name}: \S+ nats, (\S+) \+- (\S+) more", text)
        excess, error = map(float, found.groups())
        # A Gaussian with the images' mean and covariance adds 1.82 nats.
        assert -3 * error < excess < 1, name
        assert error < 0.2
    # Of the integers: the model's part, and what uniform noise in bins of 0.4 sigma costs.
    found = re.search(r"integers: (\S+) bits/dim, (\S+) \+- (\S+) more than the truth", text)
    bits, excess, error = map(float, found.groups())
    assert -3 * error < excess < 0.1 and bits < 5


@pytest.mark.slow
@pytest.mark.long
def test_any_model_sets_a_model_of_diffusers_beside_the_one_that_ships(tmp_path):
    for library in ("torch", "diffusers", "sklearn"):
        pytest.importorskip(library)
    text = printed("any_model", tmp_path, "--quick", f"--folder={tmp_path}")
    assert "bits/dim; variational bound of a chain of steps, fixed small variance" in text
    by_ode = r"bits/dim, to which .* at most \S+; ODE bound, informed decoder, 1 draw"
    assert re.search(by_ode, text)
    rows = re.findall(r"^(\S.*?)  +(\d\.\d{3})  +(\d\.\d{3})$", text, re.MULTILINE)
    uniform, bound, ode, shipped = (float(mean) for _, mean, _ in rows)
    # Hardly trained it knows little more than nothing; the model that ships has 2.1 of 17 levels.
    assert uniform == 8 and 6 < ode < 9.5 and 6 < bound < 9.5
    assert 5.7 < shipped < 6.3


@pytest.mark.long
@pytest.mark.slow
def test_a_learned_posterior_is_held_against_the_truth(tmp_path):
    pytest.importorskip("matplotlib")
    flags = ["--steps=1000", "--grid=64", "--simulations=30", f"--out={tmp_path / 'a.png'}"]
    text = printed("posterior", tmp_path, *flags)
    integrals = re.findall(r"grid: truth (\S+), model (\S+)", text)
    assert len(integrals) == 2
    np.testing.assert_allclose(np.float64(integrals), 1, atol=0.06)
    gaps = re.findall(r"model: mean (\S+) nats, root mean square (\S+); .*: (\S+)", text)
    (gaussian, spread, stated), (moons, *_, stated_of_moons) = np.float64(gaps)
    # A divergence is not below 0. The prior would be off by 1.18 nats in the mean, 1.48 in root
    # mean square; for the moons, a Gaussian of their covariance by 2.70.
    assert -0.01 < gaussian < 0.12 and spread < 0.5 and 0 < moons < 2
    assert 0 < stated < 0.01 and 0 < stated_of_moons < 0.1
    for p_values in re.findall(r"uniform: p-values (\S+), (\S+)", text):
        assert min(map(float, p_values)) > 1e-4
    for off in re.findall(r"coverage is off by (\S+) at most", text):
        assert float(off) < 0.4  # 1.36 / sqrt(30) = 0.25 in 95 of 100 runs
    with Image.open(tmp_path / "a.png") as picture:
        assert np.asarray(picture).std() > 10, "an empty picture"


def test_the_truth_of_the_two_moons_is_a_posterior():
    """By simulations alone: p(theta | x near 0) by those whose x came near."""
    pytest.importorskip("matplotlib")
    moons, rng = load("posterior").TwoMoons(), np.random.default_rng(0)
    theta, x = moons.draw(rng, 4_000_000)
    near = theta[np.hypot(*x.T) < 0.003]
    assert len(near) > 40
    ticks = np.linspace(-0.36, 0.36, 721)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    mass = np.exp(moons.log_posterior(grid)) * 1e-6
    assert mass.sum() == pytest.approx(1, abs=5e-3)
    squares = np.abs(grid.sum(axis=1)), np.abs(near.sum(axis=1))
    assert squares[1].mean() == pytest.approx(mass @ squares[0], abs=5e-3)
    surprise = -moons.log_posterior(near)
    entropy = -np.sum(mass * np.where(mass > 0, moons.log_posterior(grid), 0))
    assert np.median(surprise) == pytest.approx(entropy, abs=1.0)


@pytest.mark.slow
@pytest.mark.long
def test_a_maximum_and_a_chain_find_what_a_grid_does(tmp_path):
    text = printed("map_and_hmc", tmp_path, "--rounds=60", "--chains=48")
    found, height, exact, top = re.search(
        r"maximum at \[(.*?)\], log (\S+); on the grid at \[(.*?)\], log (\S+)", text
    ).groups()
    np.testing.assert_allclose(*(np.fromstring(a, sep=" ") for a in (found, exact)), atol=0.03)
    assert float(height) == pytest.approx(float(top), abs=0.01)
    assert 0.7 < float(re.search(r"accepted (\S+)", text)[1]) < 1
    lines = re.findall(r"mean (\S+) \+- (\S+), exact (\S+); .* (\S+), exact (\S+)$", text, re.M)
    assert len(lines) == 2
    for mean, error, exact, spread, exact_spread in np.float64(lines):
        assert abs(mean - exact) < 4 * error and error < 0.05
        assert spread == pytest.approx(exact_spread, rel=0.1)


RESULT = {
    "checkpoint": 3, "step": 2400, "mean": 1.9, "stderr": 0.01, "eps": 1e-5,
    "draws": 64, "draw_stderr_of_mean": 0.002,
    "solver": {"type": "Multistep", "nodes": 32.0}, "mean_nfe": 33.0, "mean_solver_error": 0.0004,
    "divergence": {"type": "Hutchinson", "probes": 2.0, "distribution": "rademacher"},
    "probe_stderr_of_mean": 0.001,
}  # fmt: skip


@pytest.fixture
def finished(tmp_path):
    """A working directory as the demo's evaluations leave it."""
    folder = tmp_path / "eval"
    folder.mkdir()
    results = {
        "exact_test_ckpt_3": RESULT,
        "exact_test_ckpt_2": RESULT | {"checkpoint": 2, "mean": 9.0},
        "bound_test_ckpt_3": RESULT | {"mean": 2.0},
    }
    (folder / "results.json").write_text(json.dumps(results))
    for name, result in results.items():
        np.savez(folder / f"{name}.npz", bpd=np.full((1, 360), result["mean"]))
    return tmp_path


def test_demo_sets_the_newest_model_beside_simple_densities(finished, capsys):
    pytest.importorskip("sklearn")
    load("digits_demo").show(finished)
    text = capsys.readouterr().out
    assert "Multistep with 32 steps, 33 evaluations; 0.0004 covers its error" in text
    assert "2 rademacher probes at each step make 0.0010 of the standard error" in text
    values = {
        name.strip(): float(mean)
        for name, mean in re.findall(r"^(\S.*?)  +(\d\.\d{3})  ", text, re.MULTILINE)
    }
    assert list(values) == [
        "uniform, log2 17",
        "histogram of each pixel",
        "Gaussian, full covariance",
        "score model (SDE), bound [1]",
        "score model (ODE), exact [2]",
    ]
    assert "the model is that of training step 2400" in text
    assert text.splitlines()[-1].endswith(str(finished / "report" / "index.html"))
    assert values["uniform, log2 17"] == pytest.approx(np.log2(17), abs=1e-3)
    assert values["score model (SDE), bound [1]"] == 2.0
    assert values["score model (ODE), exact [2]"] == 1.9
    gain = float(re.search(r"exact value is (\S+) \+-", text)[1])
    best = min(list(values.values())[:3])
    assert gain == pytest.approx(best - 1.9, abs=2e-3)


def test_demo_ends_with_the_command_that_was_stopped(monkeypatch, tmp_path, capsys):
    demo, codes, ran = load("digits_demo"), [0, 130, 0], []

    def command(line):
        ran.append(line)
        return codes[len(ran) - 1]

    monkeypatch.setattr(demo.cli, "main", command)
    monkeypatch.setattr(sys, "argv", ["digits_demo.py", f"--workdir={tmp_path}"])
    assert demo.main() == 130 and len(ran) == 2
    assert "bits/dim of all" not in capsys.readouterr().out


def test_the_readme_picture_shows_the_table_of_the_benchmarks():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    load("readme_picture").draw_cost(axis, (ROOT / "benchmarks" / "README.md").read_text())
    ours, published = (line.get_xydata() for line in axis.lines)
    assert len(ours) > 10 and len(published) == 3
    assert (np.diff(ours[:, 1]) < 0).all()  # more steps, less error
    assert published[:, 1].min() > ours[:, 1].min()


@pytest.mark.slow
@pytest.mark.long
def test_what_is_likely_is_in_order_and_drawn(tmp_path):
    """Black lies among the digits; inverted digits and noise beyond all test digits."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    flags = [f"--out={tmp_path / 'likely.png'}", "--images=2", "--passes=2"]
    text = printed("what_is_likely", tmp_path, *flags)
    rows = re.findall(r"^(\w[\w ]*?) +\d+ +(\S+) to (\S+) +(\S+) to (\S+) ", text, re.MULTILINE)
    ranks = {name: (float(low), float(high)) for name, _, _, low, high in rows}
    assert list(ranks) == ["digit", "black", "upside down", "inverted", "noise"]
    assert 0 < ranks["black"][0] < 1
    assert ranks["inverted"] == ranks["noise"] == (1.0, 1.0)
    least = re.findall(r"^(black|inverted|noise) .* (\S+) to (\S+)$", text, re.MULTILINE)
    assert {(low, high) for _, low, high in least} == {("0.006", "0.006")}
    with Image.open(tmp_path / "likely.png") as picture:
        assert np.asarray(picture).std() > 10, "an empty picture"


@pytest.mark.long
@pytest.mark.slow
def test_the_evidence_of_a_posterior_is_that_of_its_closed_form(tmp_path):
    text = printed("evidence", tmp_path, "--steps=300", "--samples=1000")
    found = re.findall(r"log evidence (\S+) \+- (\S+), solver (\S+); exact (\S+)", text)
    assert len(found) == 3
    for log_z, error, solver, exact in np.float64(found):
        assert abs(log_z - exact) < 3 * error + solver and error < 0.05
    rows = [
        np.float64(row.split()) for row in re.findall(r"^  (?:mean|\+-|exact) (.*)$", text, re.M)
    ]
    for mean, error, exact in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert (np.abs(mean - exact) < 4 * error).all()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Pareto k")
def test_free_energies_by_weights_are_those_of_monte_carlo(tmp_path):
    """That of four particles is known by a Monte Carlo in NumPy as well: 0.221 +- 0.007."""
    pytest.importorskip("blackjax")
    text = printed("boltzmann", tmp_path)
    log_z, error, solver, exact = np.float64(
        re.search(r"log Z (\S+) \+- (\S+), solver (\S+); by quadrature (\S+)", text).groups()
    )
    assert abs(log_z - exact) < 3 * error + solver and error < 0.1
    chains = np.float64(re.findall(r"Monte Carlo, begun .*: (\S+) \+- (\S+)", text))
    assert len(chains) == 2 and (np.abs(chains[:, 0] - 0.221) < 4 * chains[:, 1] + 0.02).all()
    ours, error, solver = np.float64(
        re.search(r"reweighted (\S+) \+- (\S+), solver (\S+)", text).groups()
    )
    assert abs(ours - 0.221) < 3 * error + solver and error < 0.3


def test_the_energy_of_particles_is_symmetric_and_its_integral_is_known():
    """By a sum over a grid of the distance, and of the centre of two particles."""
    import jax.numpy as jnp

    example, rng = load("boltzmann"), np.random.default_rng(0)
    x = rng.normal(size=(5, 4, 2))
    np.testing.assert_allclose(example.energy(x[:, [2, 0, 3, 1]]), example.energy(x), rtol=1e-5)
    ticks = np.linspace(-12, 12, 601)
    first, second = np.meshgrid(ticks, ticks)
    weights = np.exp(-np.asarray(example.of_pair(jnp.hypot(first, second)), np.float64))
    centre = 2 * np.pi / example.SPRING
    total = np.log(centre * weights.sum() * (ticks[1] - ticks[0]) ** 2)
    assert example.log_z_of_two() == pytest.approx(total, abs=1e-3)

"""What stands for many facts differs where one of them does: each fact of each key, by itself.

A case gives pairs of what was changed and the key then. The first is of nothing changed, and the
key of ``SAME`` must be equal to it: that of the same facts again. All others differ. Where what is
stored is looked up by its facts, the case gives whether it is taken: with nothing changed alone.
"""

import os
from dataclasses import fields, replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.extractors import stand_in
from helpers.reported import result
from helpers.tiny_runs import TINY
from jax.tree_util import Partial
from ml_collections import ConfigDict

import scoremle
from scoremle import data
from scoremle.cli import cache
from scoremle.cli.commands import parser_of, sample, score_on_ray, stats
from scoremle.core.dequantize import Flow
from scoremle.core.pixels import Pixels
from scoremle.data import archive, dataset, prepared
from scoremle.data.dataset import Dataset
from scoremle.data.prepare import prepare
from scoremle.data.prepared import Prepared
from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.errors import UserError
from scoremle.evaluation.result import Result
from scoremle.experiment import control_variate, run_eval, run_sampling
from scoremle.experiment.build import build
from scoremle.experiment.control_variate import ControlRun
from scoremle.experiment.measurement import Measurement
from scoremle.experiment.reference import ReferenceScores, reference_of
from scoremle.experiment.results import add_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import write_npz
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.quality import features
from scoremle.report.subject import paired
from scoremle.resumable import read_part, resumable_map
from scoremle.training.checkpoints import Restored
from scoremle.training.step import TrainState

SAME = "the same again"
IMAGES = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 1)).astype(np.uint8)


class Asked(Exception):
    """Raised where the key is known, with it."""


def asked(call, *arguments):
    with pytest.raises(Asked) as caught:
        call(*arguments)
    return caught.value.args[0]


def answer(key, *_, **__):
    raise Asked(key)


@pytest.fixture(scope="module")
def experiment():
    return build(parser_of("").checked([*TINY, "--workdir=w", "--mode=train"]).config)


def stamp_of_files(folder, monkeypatch, experiment):
    file = folder / "a"
    file.write_text("12")

    def written(text, time):
        file.write_text(text)
        os.utime(file, ns=(time, time))
        return archive.stamp(folder)

    yield "", written("12", 1000)
    yield "size", written("123", 1000)
    yield "time", written("12", 2000)
    yield SAME, written("12", 1000)
    (folder / "b").write_text("")
    yield "another file", archive.stamp(folder)
    (folder / "b").rename(folder / "c")
    yield "name", archive.stamp(folder)


def folder_of_a_prepared_set(folder, monkeypatch, experiment):
    other = {"size": 4, "channels": 3, "fit": "crop", "levels": 2, "test_fraction": 0.5,
             "skip_bad": True}  # fmt: skip
    one, two = folder / "one", folder / "two"
    for place in (one, two):
        place.write_text("12")
        os.utime(place, ns=(1000, 1000))
    named = Dataset("a", lambda path, options: Reading(iter(()), str))
    options = Options()
    yield "", named._cached(one, options)
    yield SAME, named._cached(one, Options())
    yield "name", replace(named, name="b")._cached(one, options)
    yield "place", named._cached(two, options)
    for field in fields(Options):
        yield field.name, named._cached(one, replace(options, **{field.name: other[field.name]}))
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "FORMAT", -1)
        yield "format", named._cached(one, options)
    os.utime(one, ns=(2000, 2000))
    yield "time", named._cached(one, options)


def parts_of_features(folder, monkeypatch, experiment):
    state = {"images": IMAGES, "levels": 17, "extractor": stand_in()}
    monkeypatch.setattr(features, "load_inception", lambda path: state["extractor"])
    monkeypatch.setattr(features, "extract", lambda *_, folder, **__: answer(folder))

    def load(*_, **__):
        images = state["images"]
        return SimpleNamespace(train=images, test=images, levels=state["levels"])

    monkeypatch.setattr(data, "load", load)
    command = "digits", "--weights=w.npz", f"--out={folder / 'out.npz'}"

    def key(*flags, **facts):
        with monkeypatch.context() as patch:
            for name, value in facts.items():
                patch.setitem(state, name, value)
            return asked(stats.run, parser_of("stats").parse_args([*command, *flags]))

    yield "", key()
    yield SAME, key()
    yield "images", key(images=16 - IMAGES)
    yield "shape", key(images=IMAGES.reshape(6, 4, 16, 1))
    yield "levels", key(levels=256)
    yield "split", key("--split=test")
    for name in ("name", "weights_sha256"):
        yield name, key(extractor=replace(stand_in(), **{name: "other"}))
    with monkeypatch.context() as patch:
        patch.setattr(scoremle, "__version__", "other")
        yield "version", key()


def folder_of_compiled_programs(folder, monkeypatch, experiment):
    yield "", cache._machine()
    yield SAME, cache._machine()
    for name, (module, function, value) in {
        "architecture": (cache.platform, "machine", lambda: "other"),
        "compiler": (cache.importlib.metadata, "version", lambda name: "other"),
        "processor": (cache, "Path", lambda name: SimpleNamespace(read_text=lambda: "flags: a")),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, function, value)
            yield name, cache._machine()


def file_of_a_control(folder, monkeypatch, experiment):
    monkeypatch.setattr(control_variate, "read_npz", answer)
    def of(weight):
        return replace(MODEL, noise=Partial(weighted, jnp.full(2, weight)))

    run, place = ControlRun(of(1.0), "score", experiment.data, 0), (folder, experiment.identity())
    reverse = replace(experiment.data, train=experiment.data.train[::-1])
    yield "", asked(run.kept, *place)
    yield SAME, asked(replace(run, model=of(1.0)).kept, *place)
    yield "parameters", asked(replace(run, model=of(0.0)).kept, *place)
    yield "matching", asked(replace(run, matching="denoising").kept, *place)
    yield "seed", asked(replace(run, seed=1).kept, *place)
    yield "images", asked(replace(run, data=reverse).kept, *place)
    other = {"eps": 0.1, "sde": scoremle.VE(), "pixels": Pixels(17, 0, 1)}
    for name, value in other.items():
        changed = with_model(experiment, **{name: value})
        yield name, asked(run.kept, folder, changed.identity())
    yield "imported", asked(run.kept, folder, replace(experiment, imported={"a": "b"}).identity())


def restored(*, step=1, number=1, value=1.0):
    return Restored(TrainState(*[{"w": jnp.full(2, value)}] * 4), {"step": step}, number)


def with_model(experiment, **changed):
    return replace(experiment, model=replace(experiment.model, **changed))


def with_data(experiment, **changed):
    return replace(experiment, data=replace(experiment.data, **changed))


def with_evaluation(experiment, **changed):
    return replace(experiment, evaluation=ConfigDict({**experiment.evaluation, **changed}))


def of_experiments(experiment):
    """Whatever a value of an evaluation depends on but its task and its checkpoint, changed."""
    data = experiment.data
    yield "seed", replace(experiment, seed=1)
    yield "smallest time", with_model(experiment, eps=0.1)
    yield "SDE", with_model(experiment, sde=scoremle.VE())
    yield "precision", with_model(experiment, network=experiment.model.network.clone(
        dtype=jnp.dtype("bfloat16")))  # fmt: skip
    yield "data set", with_data(experiment, name="other")
    yield "levels", with_data(experiment, levels=16)
    yield "version of the data", with_data(experiment, facts={**data.facts, "data_version": "9"})


def parts_of_an_evaluation(folder, monkeypatch, experiment):
    facts = scoremle.ByOde().describe()
    one = Measurement(MODEL, scoremle.ByOde(), kind="exact", facts=facts)
    flow_of = replace(one, dequantizer=Flow(of_zero, {}, 17))
    on_host = replace(one, estimator=scoremle.ByOde(solver=PublishedRK45()))
    workdir = Workdir(folder)

    def key(experiment=experiment, one=one, flow=None, **changed):
        run = run_eval.EvaluationRun(experiment, folder, workdir, workdir, flow)
        return run._parts(run._name(one.kind, 1), run._facts_of(one, restored(**changed)))

    yield "", key()
    yield SAME, key()
    for name, other in of_experiments(experiment):
        if name != "SDE":  # of what is measured: it may be learned
            yield name, key(other)
    yield "SDE", key(one=replace(one, model=replace(MODEL, sde=scoremle.SubVP())))
    reverse = experiment.data.test[::-1]
    yield "images", key(with_data(experiment, test=reverse))
    yield "number of images", key(with_evaluation(experiment, num_images=10))
    yield "split", key(with_evaluation(experiment, dataset="train"))
    for name in ("random_flip", "augment"):
        of_data = experiment.config["data"] | {name: True}
        yield name, key(replace(experiment, config={**experiment.config, "data": of_data}))
    yield "estimator", key(one=replace(one, facts={**one.facts, "estimator": "other"}))
    yield "kind", key(one=replace(one, kind="other"))
    yield "step", key(step=2)
    yield "checkpoint", key(number=2)
    yield "parameters", key(value=2.0)
    for step in (1, 2):
        yield f"flow {step}", key(one=flow_of, flow=restored(step=step))
    for size in (7, 8):
        sized = with_evaluation(experiment, batch_size=size)
        yield f"batches of {size} on the host", key(sized, on_host)
    with monkeypatch.context() as patch:
        patch.setattr(scoremle, "__version__", "other")
        yield "version", key()


def parts_of_samples(folder, monkeypatch, experiment):
    monkeypatch.setattr(run_sampling.SamplingRun, "_samples", lambda _, params, parts, name:
                        answer(parts))  # fmt: skip
    checkpoint = {"checkpoint": 1, "step": 1, "ema_hash": "a"}

    def key(experiment=experiment, **changed):
        return asked(run_sampling.SamplingRun(experiment, folder, None).run, {},
                     {**checkpoint, **changed})  # fmt: skip

    yield "", key()
    yield SAME, key()
    unlike = {"smallest time", "version of the data"}  # a sample does not depend on the latter
    for name, other in of_experiments(experiment):
        if name not in unlike:
            yield name, key(other)
    config = experiment.config
    yield "sampler", key(replace(experiment, config={**config, "sampling": {"method": "other"}}))
    for name, value in (("checkpoint", 2), ("step", 2), ("ema_hash", "b")):
        yield name, key(**{name: value})
    with monkeypatch.context() as patch:
        patch.setattr(scoremle, "__version__", "other")
        yield "version", key()


def of_zero(x, t):
    return 0 * x


def read_as(prediction):
    return replace(MODEL, noise=scoremle.noise_fn(of_zero, scoremle.VP(), prediction=prediction))


def weighted(weights, x, t):
    return weights[0] * x


MODEL = scoremle.ScoreModel(of_zero, scoremle.VP(), 1e-3, (8, 8, 1), Pixels(17))
FOUND = Measurement(MODEL, scoremle.ByOde())
OTHERS = {
    "SDE": replace(FOUND, model=replace(MODEL, sde=scoremle.SubVP())),
    "smallest time": replace(FOUND, model=replace(MODEL, eps=1e-2)),
    "pixels": replace(FOUND, model=replace(MODEL, pixels=Pixels(17, 0, 1))),
    "output as it is": replace(FOUND, model=read_as("eps")),
    "another meaning of it": replace(FOUND, model=read_as("v")),
    "estimator": replace(FOUND, estimator=scoremle.ByElbo()),
    "solver": replace(FOUND, estimator=scoremle.ByOde(solver=scoremle.Multistep(9))),
}
# What a pilot found, which has other last digits on another machine.
PILOTED = scoremle.Multistep(calibration=1.1, typical=0.3)
CALIBRATED = replace(
    FOUND, model=replace(MODEL, solver=PILOTED), estimator=scoremle.ByOde(solver=PILOTED)
)


def parts_of_scores(folder, monkeypatch, experiment):
    file = folder / "own.py"
    file.write_text("one")
    place = f"{file}:model"

    def key(found=FOUND, place=place, images=IMAGES, seed=0):
        return found.parts(folder, place, images, seed)

    yield "", key()
    yield SAME, key(CALIBRATED)
    for name, found in OTHERS.items():
        yield name, key(found)
    yield "place", key(place="digits")
    yield "images", key(images=16 - IMAGES)
    yield "shape", key(images=IMAGES.reshape(6, 4, 16, 1))
    yield "seed", key(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(scoremle, "__version__", "other")
        yield "version", key()
    file.write_text("two")
    yield "code", key()
    for number in (0, 1):
        model = replace(MODEL, noise=lambda x, t, number=number: number + 0 * x)
        yield f"a function of {number}", key(replace(FOUND, model=model))


def table_on_ray(folder, monkeypatch, experiment):
    for name, value in {
        "ray_data": None, "load": MODEL, "of_images": (MODEL.pixels, MODEL.shape), "pieces_of": [],
        "reference_of": ReferenceScores(np.zeros(0)), "_first": IMAGES,
    }.items():  # fmt: skip
        monkeypatch.setattr(score_on_ray, name, lambda *_, value=value: value)
    monkeypatch.setattr(score_on_ray.Table, "begin", lambda table, facts: answer(facts))
    np.save(folder / "x.npy", IMAGES)

    def key(*flags, found=FOUND):
        monkeypatch.setattr(score_on_ray, "prepared", lambda *_: found)
        command = "digits", str(folder / "x.npy"), f"--out={folder / 'out'}", *flags
        return asked(score_on_ray.run, parser_of("score").parse_args(command))

    yield "", key()
    yield SAME, key(found=CALIBRATED)
    for name, found in OTHERS.items():
        yield name, key(found=found)
    for flag in ("fit=resize", "label=3", "repeats=9", "seed=1"):
        yield flag, key(f"--{flag}")
    np.save(folder / "x.npy", IMAGES[:3])
    yield "images", key()


def parts_of_a_sample(folder, monkeypatch, experiment):
    monkeypatch.setattr(scoremle.ScoreModel, "sample", lambda *_, parts, **__: answer(parts))

    def key(*flags, model=MODEL):
        monkeypatch.setattr(sample.scoremle, "load", lambda *_: model)
        command = "mine.py:f", f"--out={folder / 'x.npz'}", *flags
        return asked(sample.run, parser_of("sample").parse_args(command))

    (folder / "mine.py").write_text("one")
    monkeypatch.chdir(folder)
    yield "", key()
    yield SAME, key()
    for flags in ("--seed=1", "-n=3", "--sampler=ddim", "--steps=3", "--log-prob"):
        yield flags, key(flags)
    yield "steps with log p", key("--log-prob", "--steps=3")
    for name in ("SDE", "smallest time", "another meaning of it"):
        yield name, key(model=OTHERS[name].model)
    with_classes = replace(
        MODEL, noise=lambda x, t, label: 0 * x, origin=scoremle.model.Origin(classes=2)
    )
    for label in ("0", "1", "all"):
        yield f"label {label}", key(f"--label={label}", model=with_classes)


CASES = (
    stamp_of_files, folder_of_a_prepared_set, parts_of_features, folder_of_compiled_programs,
    file_of_a_control, parts_of_an_evaluation, parts_of_samples, parts_of_scores,
    parts_of_a_sample, table_on_ray,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_each_fact_makes_another_key(case, tmp_path, monkeypatch, experiment):
    found = dict(case(tmp_path, monkeypatch, experiment))
    first, again = found.pop(""), found.pop(SAME)
    assert first == again
    values = [first, *found.values()]
    same = [name for name, value in found.items() if values.count(value) > 1]
    assert not same, f"another fact, and the same key: {same}"


def ranks_of_an_evaluation(folder, monkeypatch, experiment):
    model = replace(MODEL, origin=scoremle.model.Origin(step=7))
    write_npz(folder / "eval" / "a.npz", {"bpd": np.ones((2, 3))})
    known = {"split": "test", "step": 7, "full_pass": True, "passes": 2, "images": 3, "eps": 1e-3}
    facts = result("exact", np.ones((2, 3)), **known)

    def taken(**changed):
        add_results(folder / "eval" / "results.json", {"a": {**facts, **changed}})
        return len(reference_of(str(folder), model, "ode").values) == 3

    yield "", taken()
    for name, value in (
        ("kind", "bound"), ("split", "train"), ("step", 8), ("full_pass", False), ("eps", 0.2),
        ("precision", "bfloat16"),
    ):  # fmt: skip
        yield name, taken(**{name: value})


def features_of_a_network(folder, monkeypatch, experiment):
    file = folder / "stats.npz"
    features.write_reference(file, np.zeros((5, 3), np.float32), stand_in(), {})

    def taken(**changed):
        return not refused(features.read_reference, file, replace(stand_in(), **changed))

    yield "", taken()
    yield "name", taken(name="other")
    yield "weights", taken(weights_sha256="other")


def refused(call, *arguments):
    try:
        call(*arguments)
    except UserError:
        return True
    return False


def a_set_in_the_cache(folder, monkeypatch, experiment):
    monkeypatch.setenv("SCOREMLE_DATA", str(folder))
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    found = Dataset("a", lambda path, options: Reading(iter([Chunk(images, None, 1.0)]), str),
                    options=dataset.ANY_SIZE)  # fmt: skip
    options = Options(size=4, channels=3, fit="crop", levels=16)
    found.prepare(folder, options, folder / "a-1")
    yield "", not refused(found.find, "", options)
    for name, value in (("size", 8), ("channels", 1), ("fit", "resize"), ("levels", 8)):
        yield name, not refused(found.find, "", replace(options, **{name: value}))


def a_finished_part(folder, monkeypatch, experiment):
    one = folder / "a" / "b"
    resumable_map(lambda repeat, index: {"x": index + 1.0}, 4, size=4, folder=one)
    (part,) = one.iterdir()

    def taken(*place, **arrays):
        copy = folder.joinpath("copies", *place)
        write_npz(copy, {**dict(np.load(part)), **arrays})
        return read_part(copy) is not None

    yield "", taken("a", "b", part.name)
    yield "folder", taken("a", "other", part.name)
    yield "folder above", taken("other", "b", part.name)
    yield "pass", taken("a", "b", part.name.replace("pass0", "pass1"))
    yield "first image", taken("a", "b", part.name.replace("image0", "image4"))
    yield "values", taken("a", "b", part.name, x=np.arange(4.0))


def a_pair_of_results(folder, monkeypatch, experiment):
    facts = result("exact", np.ones((2, 3)), data_hash="a", seed=0, passes=2, images=3)
    for name in ("a", "b"):
        write_npz(folder / f"{name}.npz", {"bpd": np.ones((2, 3))})

    def taken(**changed):
        a, b = Result.read("a", facts, folder), Result.read("b", {**facts, **changed}, folder)
        return paired(a, b)

    yield "", taken() is not None
    for name, value in (("kind", "bound"), ("data_hash", "b"), ("seed", 1)):
        yield name, taken(**{name: value}) is not None


def arrays_that_were_compared(folder, monkeypatch, experiment):
    """Where the file of a prepared array is another, it is compared with its hash again."""
    images = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2, 1)
    prepare(Reading(iter([Chunk(images, None, 1.0)]), str), folder / "a", name="a", source="",
            options=Options())  # fmt: skip
    file = folder / "a" / "train.npy"
    whole, time = file.read_bytes(), file.stat().st_mtime_ns

    def taken(content, time):
        (folder / "copy").write_bytes(content)
        (folder / "copy").replace(file)
        os.utime(file, ns=(time, time))
        return not refused(Prepared(folder / "a").images, "train")

    yield "", taken(whole, time)
    yield "file", taken(whole[:-1] + b"x", time)
    file.write_bytes(whole)
    assert taken(whole, time)
    file.write_bytes(whole[:-1] + b"x")
    yield "time", not refused(Prepared(folder / "a").images, "train")


LOOKED_UP = (
    ranks_of_an_evaluation, features_of_a_network, a_set_in_the_cache, a_finished_part,
    a_pair_of_results, arrays_that_were_compared,
)  # fmt: skip


@pytest.mark.parametrize("case", LOOKED_UP, ids=lambda case: case.__name__)
def test_what_differs_in_one_fact_is_not_taken(case, tmp_path, monkeypatch):
    found = dict(case(tmp_path, monkeypatch, None))
    assert found.pop("") and not any(found.values()), found

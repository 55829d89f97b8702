"""Compression: bits that decode, as many as the bound of the model states."""

import contextlib
import errno
import hashlib
import json
import shutil
import zlib
from dataclasses import replace
from itertools import count
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import Gaussian
from PIL import Image
from scipy.stats import norm

from scoremle import VE, VP, Pixels, ScoreModel, UserError, bounded
from scoremle.cli import main as cli
from scoremle.coding import blocks, codec, file, images
from scoremle.coding.layers import LatentLayers
from scoremle.coding.rates import RATES_FILE
from scoremle.coding.stack import MOST_BEYOND, BitStack
from scoremle.core import schedules
from scoremle.core.betas import betas
from scoremle.core.prediction import RangedNoise, noise_fn
from scoremle.core.sde import SDE
from scoremle.evaluation import pictures
from scoremle.experiment.shipped import FOLDER, WEIGHTS
from scoremle.likelihood.decoders import DiscreteDecoder, GaussianDecoder, InformedDecoder
from scoremle.likelihood.steps import chain_of
from scoremle.solvers.multistep import Multistep

pytest.importorskip("constriction")

SHAPE, PIXELS, STEPS = (2, 3, 1), Pixels(8), 20
DATA = Gaussian.of(np.full(6, 0.1), np.full(6, 0.3**2))
IMAGES = np.asarray(PIXELS.decode(jnp.asarray(DATA.draw(0, 300)))).reshape(-1, *SHAPE)


def model_of(sde=None, scale=1.0, eps=1e-5):
    """The exact model, or one whose prediction is off by a factor."""
    sde = sde or VP()
    noise = DATA.noise(sde)
    return ScoreModel(lambda x, t: scale * noise(x, t), sde, eps, SHAPE, PIXELS)


def layers_of(model, lanes=17, steps=STEPS, **changes):
    chain = chain_of(steps, model.sde, model.eps, PIXELS, model.origin.chain)
    return LatentLayers(model, replace(chain, **changes), lanes)


# --- the stack ---------------------------------------------------------------------------------


def test_what_is_popped_is_what_was_pushed_and_costs_its_surprise():
    rng, stack = np.random.default_rng(0), BitStack()
    mean, scale = rng.normal(0, 1e4, 5001), np.exp2(rng.uniform(0, 6, 5001))
    cells = np.rint(mean + scale * rng.normal(size=5001)).astype(int)
    before = stack.bits
    stack.push_normal(cells, mean, scale)
    nats = np.square((cells - mean) / scale) / 2 + np.log(scale) + np.log(2 * np.pi) / 2
    assert abs((stack.bits - before) / (nats.sum() / np.log(2)) - 1) < 0.002
    far = cells.copy()
    far[::1000] += 4 * 10**5
    stack.push_normal(far, mean, scale)
    table = rng.dirichlet(np.full(9, 0.3), 5001)
    levels = np.array([rng.choice(9, p=row) for row in table])
    before = stack.bits
    stack.push_levels(levels, table)
    surprise = -np.log2(table[np.arange(5001), levels]).sum()
    assert abs((stack.bits - before) / surprise - 1) < 0.002
    assert np.array_equal(stack.pop_levels(table), levels)
    assert np.array_equal(stack.pop_normal(mean, scale), far)
    assert np.array_equal(stack.pop_normal(mean, scale), cells)
    assert stack.bits == BitStack().bits


def test_a_draw_that_is_given_back_leaves_the_bits_as_they_were():
    stack, mean = BitStack(), np.linspace(-9, 9, 1001)
    stack.fill(12 * 1001)
    words = stack.words
    drawn = stack.draw_normal(mean, np.full(1001, 20.0))
    z = (drawn - mean) / 20
    assert abs(z.mean()) < 4 / 1001**0.5 and abs(z.std() - 1) < 0.1
    assert len(stack.words) < len(words)
    stack.give_back(drawn, mean, np.full(1001, 20.0))
    assert np.array_equal(stack.words, words)


def test_a_layer_costs_the_ratio_of_its_densities_whatever_their_scales():
    """A thousand layers make a tenth of a bit of a ten-thousandth each."""
    count, stack, mean = 400_001, BitStack(), np.linspace(-9, 9, 400_001)
    for octave in (0.25, 1 / 3, 1 / 128):  # between steps of a coarse grid, by more and by less
        first, second = (np.full(count, 2 ** (power + octave)) for power in (3.0, 3.4))
        stack.fill(8 * count)
        before = stack.bits
        cells = stack.draw_normal(mean, first)
        stack.push_normal(cells, mean, second)
        squares = np.square(cells - mean)
        nats = (squares / second**2 - squares / first**2) / 2 + np.log(second / first)
        assert abs((stack.bits - before - nats.sum() / np.log(2)) / count) < 8e-4


def test_a_draw_from_bits_that_were_pushed_is_one():
    """Else cells that lie far out by a wrong scale would give draws that do so, too."""
    stack, mean, scale = BitStack(), np.zeros(20_001), np.full(20_001, 20.0)
    wide = np.rint(np.random.default_rng(0).normal(0, 40, 20_001)).astype(int)
    stack.push_normal(wide, mean, scale)
    stack.scramble(stack.bits, 3)
    z = stack.draw_normal(mean, scale)[:10_000] / 20
    assert abs(z.mean()) < 0.04 and abs(np.square(z).mean() - 1) < 0.06
    before = stack.words
    stack.scramble(stack.bits, 3)
    assert not np.isin(before, stack.words).any()
    stack.scramble(stack.bits, 3)
    assert np.array_equal(stack.words, before)


@pytest.mark.parametrize(
    ("cell", "mean", "scale"),
    [
        (2 * MOST_BEYOND, 0, 1), (0, np.nan, 1), (0, 1e30, 1),
        (0, 0, np.nan), (0, 0, 0), (0, 0, 1e6),
    ],
)  # fmt: skip
def test_what_is_out_of_reach_or_no_number_is_refused(cell, mean, scale):
    with pytest.raises(OverflowError):
        BitStack().push_normal(np.array([cell]), np.full(1, float(mean)), np.full(1, float(scale)))


def test_grey_values_without_any_probability_are_refused():
    none = np.asarray([[0.5, 0.5], [1e-30, 0.0]])
    for act in (lambda s: s.push_levels(np.zeros(2, int), none), lambda s: s.pop_levels(none)):
        with pytest.raises(OverflowError, match="no probability"):
            act(BitStack(np.ones(9, np.uint32)))


# --- images ------------------------------------------------------------------------------------


def ranged(label, x):
    return jnp.concatenate([0.3 * x, jnp.full_like(x, 0.4)], axis=-1)


def of_a_chain(variance):
    """A model with a chain of its own, whose network predicts variances or not."""
    sde = SDE("vp", schedules.Discrete.of_betas(betas("cosine", STEPS)), 1.0)
    both = noise_fn(lambda x, label: ranged(label, x), sde, time_input="step")
    if variance == "learned":
        return ScoreModel(RangedNoise(both), sde, 1 / STEPS, SHAPE, PIXELS)
    return ScoreModel(lambda x, t: 0.3 * x, sde, 1 / STEPS, SHAPE, PIXELS)


CASES = {
    "flat decoder": (lambda: model_of(), {}),
    "informed decoder": (lambda: model_of(eps=0.05), {}),
    "ve": (lambda: model_of(VE(0.01, 50.0)), {}),
    "a decoder that is given": (
        lambda: model_of(scale=1.2),
        {"decoder": InformedDecoder(np.asarray(PIXELS.points), 0.2)},
    ),
    "large variance": (lambda: of_a_chain("large"), {"variance": "large", "clip": True}),
    "learned variance": (lambda: of_a_chain("learned"), {"variance": "learned"}),
}


@some("case", CASES, quick=["learned variance"])
def test_images_come_back_in_the_bits_that_the_terms_of_the_bound_are(case):
    make, changes = CASES[case]
    model = make()
    layers = layers_of(model, **changes)
    coded, nats = codec.compress(layers, IMAGES[:101])
    assert np.array_equal(codec.decompress(layers, coded), IMAGES[:101])
    assert coded.images == 101 and not coded.plain and len({b.images for b in coded.blocks}) > 3
    net, terms = 32 * len(coded.words) - coded.initial, nats.sum() / np.log(2)
    assert abs(net - terms) < 64 + 0.01 * terms  # words of 32 bits


def test_a_flat_decoder_has_the_densities_around_the_grey_values():
    model = model_of()
    layers = layers_of(model, decoder=DiscreteDecoder(np.asarray(PIXELS.points)))
    alpha, sigma = (float(each(layers.times[0])) for each in (model.sde.alpha, model.sde.sigma))
    x = np.random.default_rng(2).uniform(-1, 1, (5, 6))
    found = layers.decoded(np.rint(x / layers.cell[0]).astype(int))
    distance = np.rint(x / layers.cell[0])[..., None] * layers.cell[0] - alpha * layers.points
    expected = np.exp(-np.square(distance / sigma) / 2)
    expected /= expected.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert 0.2 < expected.max(axis=2).min() < 0.9  # not all are certain


def test_an_informed_decoder_has_the_masses_of_bins_around_the_denoised_values():
    model, spread = model_of(eps=0.3), 0.2
    layers = layers_of(model, decoder=InformedDecoder(np.asarray(PIXELS.points), spread))
    x = np.rint(np.random.default_rng(2).uniform(-1, 1, (5, *SHAPE)) / layers.cell[0])
    t, places = jnp.full(5, layers.times[0]), x * layers.cell[0]
    alpha, sigma = (float(each(layers.times[0])) for each in (model.sde.alpha, model.sde.sigma))
    denoised = (places - sigma * np.asarray(model.noise(jnp.asarray(places), t))) / alpha
    edges = np.concatenate([[-np.inf], PIXELS.points[:-1] + np.diff(PIXELS.points) / 2, [np.inf]])
    expected = np.diff(norm.cdf((edges - denoised[..., None]) / spread))
    found = layers.decoded(x.reshape(5, -1).astype(int))
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=2e-3)
    assert alpha < 0.8


@pytest.mark.long
def test_the_terms_of_the_bound_are_those_of_its_mean():
    """Means of one draw of each image, by the coder and by the estimator."""
    model = model_of(scale=1.1)
    chain = chain_of(STEPS, model.sde, model.eps, PIXELS)
    _, nats = codec.compress(layers_of(model, lanes=64), IMAGES)
    stated = images.score_images(model, chain, IMAGES).values["bpd"][0]
    gap = nats / (6 * np.log(2)) - stated
    assert abs(gap.mean()) < 3 * gap.std() / len(gap) ** 0.5


@pytest.mark.long
def test_only_the_first_image_draws_from_random_bits():
    layers = layers_of(model_of(), lanes=64)
    few, _ = codec.compress(layers, IMAGES[:9])
    many, _ = codec.compress(layers, IMAGES)
    assert few.initial == many.initial > 0


@pytest.mark.long
def test_the_network_is_given_few_images_where_a_block_is_small():
    layers, given = layers_of(model_of(), lanes=64), []
    back = layers._back
    layers._back = lambda x, i: given.append(len(x)) or back(x, i)
    coded, _ = codec.compress(layers, IMAGES[:101])
    assert np.array_equal(codec.decompress(layers, coded), IMAGES[:101])
    powers = 8, 16, 32, 64
    there = [next(n for n in powers if n >= block.images) for block in coded.blocks]
    each = [lanes for lanes in there for _ in range(2 * layers.last)]  # coded, and checked
    assert given[: len(each)] == each and set(given) == {8, 16}
    assert given[len(each) :] == [lanes for lanes in there[::-1] for _ in range(layers.last)]


# --- what does not come back -------------------------------------------------------------------


def restless(layers, name, every):
    """The layers, of which one mean in so many is another than in the calls before."""
    calls, of_layers = count(1), getattr(layers, name)

    def means(*given):
        mean, scale = of_layers(*given)
        return mean + 30 * (next(calls) % every == 0), scale

    setattr(layers, name, means)
    return layers


@some("name,every", [("back", 149), ("encoded", 3)], quick=[("encoded", 3)])
def test_a_block_that_does_not_come_back_is_stored_plainly(name, every, tmp_path):
    """Other means of the first layer leave the pixels as they are, and change the bits below."""
    layers, path = layers_of(model_of(), 5), tmp_path / "x.bits"
    coded, nats = codec.compress(restless(layers_of(model_of(), 5), name, every), IMAGES[:20])
    plain = sum(block.images for block in coded.blocks if block.plain)
    assert 0 < plain < 20 and np.isnan(nats).sum() == plain
    record = {"place": "", "model": "", "program": "", "steps": STEPS, "lanes": 5, "names": []}
    file.write_coded(path, {**record, "shape": [*SHAPE]}, coded)
    assert np.array_equal(codec.decompress(layers, file.read_coded(path)[1]), IMAGES[:20])


@pytest.mark.parametrize("scale", [1e9, 1e14])
def test_images_by_a_network_that_diverges_are_stored_plainly(scale):
    coded, nats = codec.compress(layers_of(model_of(eps=0.05, scale=scale), 5), IMAGES[:5])
    assert np.isnan(nats).all() and all(block.plain for block in coded.blocks)


def test_a_command_that_is_stopped_has_no_file(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "score_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        images.compress_images(model_of(), IMAGES[:3], tmp_path / "x.bits", steps=STEPS)
    assert not [*tmp_path.iterdir()]


@some("scale", [1.001, np.nan], quick=[1.001])
def test_another_rounding_is_never_wrong_pixels(scale):
    coded, _ = codec.compress(layers_of(model_of()), IMAGES[:20])
    with pytest.raises(UserError, match="not decoded"):
        codec.decompress(layers_of(model_of(scale=scale)), coded)


def first_plain(bits, packed):
    block, *others = bits.blocks
    return replace(bits, blocks=(replace(block, plain=len(packed)), *others), plain=packed)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bits: replace(bits, words=np.append(bits.words, np.uint32(0))), "are damaged"),
        (lambda bits: first_plain(bits, b"no zlib"), "not decoded"),
        (lambda bits: first_plain(bits, zlib.compress(bytes(13))), "not decoded"),
        (lambda bits: first_plain(bits, zlib.compress(bytes(11))), "not decoded"),
    ],
)
def test_bits_that_are_none_are_one_line(damage, words):
    layers = layers_of(model_of())
    coded, _ = codec.compress(layers, IMAGES[:1])
    with pytest.raises(UserError, match=words):
        codec.decompress(layers, damage(coded))


def test_what_can_not_be_coded_is_refused():
    with pytest.raises(UserError, match="no images"):
        codec.compress(layers_of(model_of()), IMAGES[:0])
    with pytest.raises(UserError, match=GaussianDecoder().title):
        layers_of(model_of(), decoder=GaussianDecoder())


def test_bits_of_a_file_stay_what_they_are():
    """Else a file of today would not be read by a later version: of each kind of symbol."""
    stack, mean, scale = BitStack(seed=3), np.linspace(-3.3, 9.7, 40), np.geomspace(0.3, 50, 40)
    assert (stack.bits, stack.initial, stack.to_draw) == (32 * 8, 32 * 8, 0)
    stack.fill(1000)
    assert stack.bits == stack.initial == 32 * (32 + 8)
    for key in range(8):
        stack.scramble(900, key)
    cells = np.rint(mean + 2.5 * scale * np.cos(np.arange(40))).astype(int)
    cells[7] += 10_000
    stack.push_normal(cells, mean, scale)
    stack.push_levels(np.arange(40) % 3, np.tile([0.2, 0.5, 0.3 - 1e-9], (40, 1)))
    found = zlib.crc32(stack.words.astype("<u4").tobytes())
    drawn = stack.draw_normal(mean, scale)
    assert (found, zlib.crc32(drawn.astype("<i8").tobytes())) == (244376800, 4183849703)


def test_what_layers_are_drawn_from_by_hand():
    layers = layers_of(model_of())
    assert 8 <= layers.scale.min() < 16  # cells in the least scale of a layer
    bits = 6 * (np.log2(np.max(layers.scale)) + np.log2(2 * np.pi * np.e) / 2)
    assert blocks.bits_to_draw(layers) == pytest.approx(1.1 * bits)
    cells, scale = np.array([[3, 0]]), np.full((1, 2), 2.0)
    nats = blocks._nats(cells, np.zeros((1, 2)), scale)
    assert nats == pytest.approx(-norm.logpdf(cells, 0, scale).sum())


# --- files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("bits") / "x.bits"
    rates = images.compress_images(
        model_of(), IMAGES[:30], path, place="there", names=[f"n {i}" for i in range(30)], steps=40
    )
    return path, rates


def test_a_file_has_its_images_names_and_rates(written):
    path, rates = written
    assert file.read_coded(path)[0]["place"] == "there"
    found, names = images.decompress_images(model_of(), path)
    assert np.array_equal(found, IMAGES[:30]) and names[:2] == ["n 0", "n 1"]
    assert rates.size == path.stat().st_size and rates.gross == 8 * rates.size / found.size
    assert abs(rates.net - rates.drawn) * found.size < 64 + 6 and rates.plain == 0
    assert abs(rates.drawn - rates.stated) < 4 * rates.stderr
    assert f"+- {rates.stderr:.3f}" in rates.line


@pytest.mark.long
def test_one_image_has_no_standard_error(tmp_path):
    rates = images.compress_images(model_of(), IMAGES[:1], tmp_path / "x", steps=2)
    assert rates.stderr is None and "+-" not in rates.line


@some(
    "names",
    [["a", "a"], ["a", "../b"], ["a", ""], ["a", "b\n"], ["a"]],
    quick=[["a", "../b"], ["a", "b\n"]],
)
def test_names_that_files_can_not_have_are_left_out(names, tmp_path, caplog):
    images.compress_images(model_of(), IMAGES[:2], tmp_path / "x", names=names, steps=2)
    assert "by number" in caplog.text
    assert images.decompress_images(model_of(), tmp_path / "x")[1] == []


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("a" * 59, True), ("a" * 60, False), ("a" * 59 + "..", True), (".", False), ("..", False),
        (".a", True), ("a/b", False), ("a\\b", False), ("a:b", False), ("a b", True),
        ("\x07", False), ("", False),
    ],
)  # fmt: skip
def test_a_name_of_a_file_has_fewer_than_sixty_letters(name, fine):
    assert file.are_names([name], 1) == fine


RECORD = {"shape": [2, 3, 1], "lanes": 3, "steps": 5, "names": []}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""), ({"lanes": 1024, "steps": 10_000}, ""), ({"lanes": 1025}, "larger"),
        ({"steps": 10_001}, "larger"), ({"lanes": 2}, "larger"),
        ({"shape": [10_000, 8000, 1]}, ""), ({"shape": [80_000_001, 1, 1]}, "larger"),
        ({"names": ["a", "b", "c", "d"]}, ""), ({"names": ["a", "b", "c"]}, "its names"),
        ({"names": ["a", "b", "c", "c"]}, "its names"),
    ],
)  # fmt: skip
def test_numbers_of_a_record_may_be_their_limits(fields, words, unchecked):
    """Checks a record of a coded block of three images, and of a plain one of 7 bytes."""
    of, plain = (codec.CodedBlock(3, 0), codec.CodedBlock(1, 0, 7)), Path("x")
    with pytest.raises(UserError, match=words) if words else contextlib.nullcontext():
        file._check(plain, RECORD | fields, of, 7)
    for wrong in (6, 8, -1):
        with pytest.raises(UserError, match="its size"):
            file._check(plain, RECORD, of, wrong)


@pytest.mark.long
def test_names_that_are_too_many_to_be_read_again_are_left_out(tmp_path, caplog, monkeypatch):
    """Letters that are not ASCII take up to twelve bytes each in the record."""
    names = [14 * letter for letter in "\N{GRINNING FACE}ab"]
    for longest, kept in ((440, True), (380, False)):
        monkeypatch.setattr(file, "LONGEST_JSON", longest)
        assert file.are_short(names) is kept
    images.compress_images(model_of(), IMAGES[:3], tmp_path / "x", names=names, steps=2)
    assert "too many" in caplog.text
    assert images.decompress_images(model_of(), tmp_path / "x")[1] == []


@pytest.mark.long
def test_images_that_take_hardly_any_bits_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "SMALL", 0)
    monkeypatch.setattr(bounded, "MAX_RATIO", 0)
    images.compress_images(model_of(), IMAGES[:3], tmp_path / "x", steps=2)
    assert np.array_equal(images.decompress_images(model_of(), tmp_path / "x")[0], IMAGES[:3])


def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "x"
    for bound in ("LONGEST_JSON", "MAX_FILE"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="in parts"):
            patch.setattr(file, bound, 100)
            images.compress_images(model_of(), IMAGES[:2], path, steps=2)
    with pytest.raises(UserError, match=r"steps.*10000"):
        images.compress_images(model_of(), IMAGES[:2], path, steps=file.MOST_STEPS + 1)
    with pytest.raises(UserError, match="comes back"):
        images.compress_images(model_of(scale=np.nan), IMAGES[:2], path, steps=2)
    assert not path.exists()


def test_a_file_is_named_by_a_text_or_by_a_link(written, tmp_path):
    (tmp_path / "link").symlink_to(written[0])
    found, _ = images.decompress_images(model_of(), str(tmp_path / "link"))
    assert np.array_equal(found, IMAGES[:30])


def test_what_a_pilot_found_is_no_other_model(written):
    """Its last digits depend on the processors that it ran on."""
    solver = Multistep(48, calibration=1.5, typical=0.25)
    model = replace(model_of(), solver=solver, decoder_scale=0.01)
    found, _ = images.decompress_images(model, written[0])
    assert np.array_equal(found, IMAGES[:30])


def test_another_model_is_named(written):
    with pytest.raises(UserError, match="another model: there"):
        images.decompress_images(
            ScoreModel(DATA.noise(VP()), VP(), 1e-3, (6,), PIXELS), written[0]
        )


def test_another_program_is_named_where_no_image_comes_back(written, tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("otherwise")

    monkeypatch.setattr(images, "decompress", fails)
    for program in (images._program(), "jax 0.1"):
        record, coded = file.read_coded(written[0])
        file.write_coded(tmp_path / "x", {**record, "program": program}, coded)
        # A function may have no parameters by which another one is known.
        with pytest.raises(UserError, match="functions or") as told:
            images.decompress_images(model_of(), tmp_path / "x")
        assert ("compressed by jax 0.1" in str(told.value)) == (program == "jax 0.1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text", "not a file"),
        (file.KIND + b" 9999\n{}\n", "another version"),
        (file.MAGIC + b"{\n", "can't be read"),
        (file.MAGIC + b"[" * 100_000 + b"\n", "can't be read"),
    ],
)
def test_a_file_of_another_kind_is_named(content, words, tmp_path):
    (tmp_path / "x").write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(UserError, match=words):
        file.read_coded(tmp_path / "x")


def test_any_flipped_bit_is_one_line(written, tmp_path):
    content, damaged = written[0].read_bytes(), tmp_path / "x.bits"
    for place in np.linspace(0, len(content) - 1, 23).astype(int):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
        with pytest.raises(UserError):
            file.read_coded(damaged)
    for length in (0, 5, 40, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises(UserError):
            file.read_coded(damaged)


def hostile(**fields):
    return lambda record: record | fields


LIES = {
    "more images": lambda r: r | {"blocks": r["blocks"] * 1000},
    "a huge block": hostile(blocks=[[10**9, 0, 0]]),
    "huge lanes": hostile(lanes=10**9),
    "many steps": hostile(steps=10**8),
    "no blocks": hostile(blocks=[]),
    "short blocks": hostile(blocks=[[30, 0]]),
    "blocks of nothing": lambda r: r | {"blocks": [*r["blocks"], [0, 0, 0]]},
    "plain bytes that are not there": hostile(blocks=[[1, 0, 99]]),
    "words that are not there": hostile(words=10**9),
    "a huge shape": hostile(shape=[10**9, 10**9, 3]),
    "a name elsewhere": lambda r: r | {"names": ["../../x", *r["names"][1:]]},
    "a missing field": lambda r: {k: v for k, v in r.items() if k != "crc" and k != "initial"},
    "text for a number": hostile(steps="9"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_record_that_lies_is_one_line(lie, written, tmp_path):
    content = written[0].read_bytes()[: -file.DIGEST]
    header, _, rest = content[len(file.MAGIC) :].partition(b"\n")
    record = json.dumps(LIES[lie](json.loads(header))).encode()
    changed = file.MAGIC + record + b"\n" + rest
    (tmp_path / "x").write_bytes(changed + hashlib.sha256(changed).digest())
    with pytest.raises(UserError):
        file.read_coded(tmp_path / "x")


# --- commands ----------------------------------------------------------------------------------


def run(capfd, *arguments):
    code = cli.main([*map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_the_commands_bring_images_back(tmp_path, capfd):
    digits = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=digits, levels=17)
    bits = tmp_path / "x.bits"
    command = ("compress", "digits", tmp_path / "x.npz", "-o", bits, "--steps=3")
    code, told, _ = run(capfd, *command)
    assert code == 0 and "stated" in told and f"3 images: {bits}" in told
    assert "more than the 4.087 bits/dim" in told  # of noise, by so few steps
    assert run(capfd, "decompress", bits, "-o", tmp_path / "y.npy")[0] == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), digits)
    assert run(capfd, "decompress", bits, "-o", tmp_path / "y.npz")[0] == 0
    with np.load(tmp_path / "y.npz") as saved:
        assert np.array_equal(saved["images"], digits) and saved["levels"] == 17
    code, _, err = run(capfd, "decompress", bits, "-o", tmp_path / "y")
    assert code == 2 and "256 grey levels" in err  # they would be nearly black
    same = (*command[:2], bits, "-o", bits, "--force")
    (tmp_path / "y").mkdir()
    for line in (command, ("decompress", bits, "-o", tmp_path / "y")):
        code, _, err = run(capfd, *line)
        assert code == 2 and "there" in err and err.count("\n") == 1
    code, _, err = run(capfd, *same)
    assert code == 2 and "two files" in err


def test_an_array_that_another_process_wrote_meanwhile_stays(tmp_path, capfd, monkeypatch):
    digits = np.zeros((2, 8, 8, 1), np.uint8)
    np.save(tmp_path / "x.npy", digits)
    bits, out = tmp_path / "x.bits", tmp_path / "y.npy"
    assert run(capfd, "compress", "digits", tmp_path / "x.npy", "-o", bits, "--steps=2")[0] == 0

    def meanwhile(*_):
        out.write_text("another's")
        return digits, []

    monkeypatch.setattr(images, "decompress_images", meanwhile)
    code, _, said = run(capfd, "decompress", bits, "-o", out)
    assert code == 2 and "--force writes" in said and out.read_text() == "another's"


@pytest.mark.long
def test_models_in_a_file_and_in_a_folder_of_others(tiny, tmp_path, capfd):
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 1), np.uint8))
    shutil.copytree(tiny.workdir, tmp_path / "w")
    (tmp_path / "w" / RATES_FILE).mkdir()  # so that nobody can write it
    for model, word in ((FOLDER / "digits" / WEIGHTS, "2 images"), (tmp_path / "w", "report")):
        bits = tmp_path / f"{model.name}.bits"
        command = ("compress", model, tmp_path / "x.npy", "-o", bits, "--steps=3")
        code, told, err = run(capfd, *command)
        assert code == 0 and word in told and err == ""


@pytest.mark.long
def test_rates_and_files_name_the_checkpoint(tiny, tmp_path, capfd):
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 1), np.uint8))
    shutil.copytree(tiny.workdir, tmp_path / "w")
    for flags, number in (((), 2), (("--checkpoint=1", "--force"), 1)):
        command = ("compress", tmp_path / "w", tmp_path / "x.npy", "-o", tmp_path / "bits")
        assert run(capfd, *command, "--steps=3", *flags)[0] == 0
        assert json.loads((tmp_path / "w" / RATES_FILE).read_text())["checkpoint"] == number
    # They come back by the checkpoint in the file, and not by the newest.
    back = "decompress", tmp_path / "bits", "-o", tmp_path / "y.npy"
    assert run(capfd, *back)[0] == 0 and not np.load(tmp_path / "y.npy").any()
    code, _, err = run(capfd, *back, "--force", "--checkpoint=2")
    assert code == 2 and "at checkpoint 1" in err


def test_pictures_of_more_levels_than_the_models_are_refused(tmp_path, capfd):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    code, _, err = run(capfd, "compress", "digits", tmp_path / "x.png", "-o", tmp_path / "b")
    assert code == 2 and "levels" in err
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "x.png")
    code, _, err = run(capfd, "compress", "digits", tmp_path / "x.png", "-o", tmp_path / "b")
    assert code == 2 and "9x9" in err and "--" not in err  # no flag that it does not have


GREY = """
import scoremle

def model():
    return scoremle.ScoreModel(
        lambda x, t: 0 * x, scoremle.VP(), 1e-3, (8, 8, 1), scoremle.Pixels(256)
    )
"""


@pytest.fixture
def grey(tmp_path):
    """A model of 256 levels."""
    (tmp_path / "mine.py").write_text(GREY)
    return f"{tmp_path / 'mine.py'}:model"


def test_pictures_come_back_under_their_names(grey, tmp_path, capfd, monkeypatch):
    (tmp_path / "x" / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8)).astype(np.uint8)
    for name, image in zip(("a", "sub/b"), pixels, strict=True):
        Image.fromarray(image).save(tmp_path / "x" / f"{name}.png")
    bits, out = tmp_path / "x.bits", tmp_path / "y"
    coded = "compress", grey, tmp_path / "x", "--steps=2", "-o"
    code, told, _ = run(capfd, *coded, bits)
    assert code == 0 and "their folders are not" in told
    shutil.copy(tmp_path / "x" / "a.png", tmp_path / "x" / "sub")
    code, told, err = run(capfd, *coded, tmp_path / "twice.bits")
    assert code == 0 and "names are not kept" in err and "their folders" not in told
    back = "decompress", bits, f"--model={grey}", "-o", out
    assert run(capfd, *back)[0] == 0
    for name, image in zip("ab", pixels, strict=True):
        with Image.open(out / f"{name}.png") as picture:
            assert np.array_equal(picture, image)
    shutil.rmtree(out)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(pictures, "as_png", full)
    code, _, err = run(capfd, *back)
    assert code == 2 and err == f"scoremle: error: can't write {out}: no space\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((8, 8, 3), (9, 8, 7), np.uint8), "grey of colours"),
        (np.zeros((8, 8, 2), np.uint8), "on white"),
        (np.zeros((8, 8), np.uint16), "8 bits"),
        (np.zeros((8, 8, 3), np.uint8), ""),
        (np.full((8, 8, 2), 255, np.uint8), ""),
    ],
)
def test_pictures_that_would_lose_something_are_refused(pixels, words, grey, tmp_path, capfd):
    Image.fromarray(pixels).save(tmp_path / "x.png")
    command = "compress", grey, tmp_path / "x.png"
    code, _, err = run(capfd, *command, "-o", tmp_path / "x.bits", "--steps=2")
    assert (code, err.count("\n")) == ((2, 1) if words else (0, 0))
    assert words in err and (tmp_path / "x.bits").exists() == (not words)


@pytest.mark.parametrize(
    ("place", "words"),
    [(b"x.py:make", "--model=x.py:make"), (b"", "--model=MODEL"), (b"a/b", "not there")],
)
def test_a_model_that_the_file_alone_names(place, words, written, tmp_path, capfd):
    content = written[0].read_bytes()[: -file.DIGEST]
    changed = content.replace(b'"there"', b'"%s"' % place)
    (tmp_path / "x").write_bytes(changed + hashlib.sha256(changed).digest())
    code, _, err = run(capfd, "decompress", tmp_path / "x", "-o", tmp_path / "y.npy")
    assert code == 2 and words in err

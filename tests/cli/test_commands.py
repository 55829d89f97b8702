"""What a person meets first: help that fits, examples that work, answers before JAX loads."""

import argparse
import contextlib
import importlib
import inspect
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoremle import data
from scoremle.anomaly import statistics
from scoremle.cli import checks
from scoremle.cli import main as cli
from scoremle.cli.commands import COMMANDS, SELDOM_USED, parser_of
from scoremle.cli.commands.anomaly import STATISTIC_NAMES
from scoremle.cli.commands.data import DATASETS
from scoremle.cli.commands.sample import SAMPLERS
from scoremle.cli.flags import MEANINGS, NOT_OF_VDM
from scoremle.cli.parser import FITS
from scoremle.data.readers import fits
from scoremle.errors import UserError
from scoremle.experiment import samplers
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.networks import NETWORK_FIELDS
from scoremle.nn.vdm import VDMNet


def printed(capsys, *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_help_fits_one_screen_and_names_all_there_is(capsys):
    screen = printed(capsys, "--help")
    lines = screen.splitlines()
    assert 24 <= len(lines) <= 40 and max(map(len, lines)) <= 80
    of_seldom = lines.index("seldom needed:") + 1
    assert [line.split()[0] for line in lines[of_seldom:]][: len(SELDOM_USED)] == [*SELDOM_USED]
    words = set(re.split(r"[\s,]+", screen))
    assert words >= {*COMMANDS, *data.DATASETS, *(name.split("/")[-1] for name in NAMED_CONFIGS)}
    assert words >= {name.rpartition("/")[0] + "/" for name in NAMED_CONFIGS if "/" in name}
    assert printed(capsys, "help") == printed(capsys, "-h") == screen


def test_exit_codes_are_explained(capsys):
    codes = re.findall(r"^ *(\d+) ", printed(capsys, "help", "exit-codes"), re.MULTILINE)
    assert {"0", "2", "130", "143"} <= {*codes}


def test_meanings_of_fields_are_below_them_on_a_narrow_screen(capsys, monkeypatch):
    monkeypatch.setattr("scoremle.cli.commands.help.screen_width", lambda: 1000)
    wide = printed(capsys, "help", "config").splitlines()
    monkeypatch.setattr("scoremle.cli.commands.help.screen_width", lambda: 80)
    narrow = printed(capsys, "help", "config").splitlines()
    (first,) = (i for i, line in enumerate(narrow) if line.startswith("optim.lr "))
    (whole,) = (line for line in wide if line.startswith("optim.lr "))
    assert narrow[first + 1].startswith("    ")
    assert (narrow[first] + narrow[first + 1]).split() == whole.split()
    assert not any("meaning" in line for line in narrow)


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, tmp_path):
    def gone(_):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_run", gone)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert cli.main(["help"]) == 0 and sys.stdout.name == os.devnull
    sys.stdout.close()


def test_names_that_are_in_two_places():
    assert tuple(data.DATASETS) == DATASETS
    assert tuple(fits.FITS) == FITS
    assert {*samplers.SAMPLERS} == {*SAMPLERS}
    read = {*inspect.signature(VDMNet).parameters}
    assert NETWORK_FIELDS - read | {"embedding"} == NOT_OF_VDM
    assert tuple(statistics.STATISTICS) == STATISTIC_NAMES


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_two_examples_and_explains_each_word(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, command, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert text == printed(capsys, "help", command)
    first, second, empty, usage = text.splitlines()[:4]
    assert empty == "" and usage.startswith(f"usage: scoremle {command}")
    for example in (first, second):
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("scoremle", command)
        if command in ("eval", "train-deq"):
            arguments.append("--config=digits")  # there is no working directory to know it
        parser_of(command).parse_args(arguments)
    for action in actions(parser_of(command)):
        assert action.help, action
        assert ("-o" in action.option_strings) == ("--out" in action.option_strings), action
    if needs := parser_of(command).needs:
        importlib.import_module(needs)


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Each word that can be typed, also those of commands within."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from actions(below)
        else:
            yield action


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_what_an_argument_is_that_is_not_given(command):
    """A number, a word or a file in brackets at the end; nothing of the kind where it is unset."""
    for action in actions(parser_of(command)):
        told = re.findall(r" \(([^()\s]+)\)$", action.help)
        if action.dest.startswith("config.") or action.help == argparse.SUPPRESS:
            continue
        if action.nargs == 0 or action.default in (None, "", argparse.SUPPRESS):
            assert told in ([], ["path"], ["NAME.png"], ["WORKDIR/report/index.html"]), action
        else:
            as_is = action.default == 0 and ("0: as" in action.help or "encoder" in action.help)
            assert as_is or told == [str(action.default)], action


# Each argument of the commands but for those of a config: how it is read, what must be given, and
# what there is to choose from.
PATHS = """
    sample:out score:images,out,page anomaly:images,out,page,detector report:workdirs,out
    compare:first,second compress:images,out decompress:file,out data:into,picture verify:path
    stats:weights,out import:path,workdir,out export:workdir,path convert-inception:weights,out
"""
NUMBERS = """
    sample:n,seed,steps,checkpoint score:passes,steps,seed,checkpoint,workers
    anomaly:size,seed,checkpoint compress:steps,checkpoint decompress:checkpoint
    data:size,channels,levels plan:devices stats:image_size export:checkpoint
    train:processes,process eval:processes,process train-deq:processes,process
"""
FRACTIONS = "anomaly:rate data:test_fraction"
NEEDED = """
    sample:model score:model,images anomaly:model,images,out,detector,what report:workdirs
    compare:first,second compress:model,images,out decompress:file,out data:name,what verify:path
    stats:dataset,weights,out import:path export:workdir,path convert-inception:weights,out
    completion:shell
"""


# The least that a number may be, where it is looked at before the command runs.
LEAST = {
    "sample": {"n": 1, "seed": 0, "steps": 1},
    "score": {"passes": 1, "seed": 0, "workers": 1, "steps": 2},
    "anomaly": {"size": 1, "seed": 0}, "compress": {"steps": 2}, "data": {"size": 0},
    "plan": {"devices": 1},
}  # fmt: skip
LEAST |= {mode: {"processes": 1, "process": 0} for mode in ("train", "eval", "train-deq")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_number_is_at_least_what_it_can_be(command):
    found = {}
    for action in actions(parser_of(command)):
        if getattr(action.type, "__name__", "") == "integer":
            with pytest.raises(argparse.ArgumentTypeError, match="an integer from") as error:
                action.type("-1")
            least = found[action.dest] = int(str(error.value).split()[-1])
            assert action.type(str(least)) == least and action.type(f"{least + 7}") == least + 7
            for bad in (str(least - 1), "1.0", "x", ""):
                with pytest.raises(argparse.ArgumentTypeError, match="an integer"):
                    action.type(bad)
            if action.dest == "seed":
                assert action.type(str(2**32 - 1)) == 2**32 - 1
                with pytest.raises(argparse.ArgumentTypeError, match="below"):
                    action.type(str(2**32))
    assert found == LEAST.get(command, {})


@pytest.mark.parametrize(
    ("text", "value"), [("0", None), ("1", None), ("nan", None), ("1e-9", 1e-9), ("0.999", 0.999)]
)
def test_a_fraction_is_between_none_and_all(text, value):
    with pytest.raises(argparse.ArgumentTypeError) if value is None else contextlib.nullcontext():
        assert checks.fraction(text) == value


def of_table(table: str, command: str) -> set[str]:
    """Gives the names that a table has for a command."""
    rows = dict(row.split(":") for row in table.split())
    return {*rows.get(command, "").split(",")} - {""}


def with_commands(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Each action, also those that choose a command within."""
    yield from (action for action in parser._actions if action.dest == "what")
    yield from actions(parser)


BELOW = "eval_folder", "deq_folder"  # names of folders in a workdir


@pytest.mark.parametrize("command", COMMANDS)
def test_an_argument_is_read_as_what_it_is(command):
    names = {"paths": set(), "numbers": set(), "fractions": set(), "needed": set()}
    for action in with_commands(parser_of(command)):
        if not action.dest.startswith("config."):
            if action.required:
                names["needed"].add(action.dest)
            kind = {"_place": "paths", "int": "numbers", "integer": "numbers"}.get(
                getattr(action.type, "__name__", ""), "fractions"
            )
            if action.type and action.dest not in ("shard", "memory", *BELOW):
                names[kind].add(action.dest)
    assert names == {
        "paths": of_table(PATHS, command), "numbers": of_table(NUMBERS, command),
        "fractions": of_table(FRACTIONS, command), "needed": of_table(NEEDED, command),
    }  # fmt: skip


@pytest.mark.parametrize("command", ["train", "eval", "train-deq", "plan"])
def test_flags_of_a_config_that_help_names_are_understood(command):
    parser = parser_of(command)
    line = ["--config=digits", "--workdir=w", "--config.seed=3"]
    for name in re.findall(r"^  (--[a-z-]+)", parser.format_help(), re.MULTILINE):
        if name != "--config":
            action = parser._option_string_actions[name]
            value = {"--memory": "1GB", "--devices": "1"}.get(name, "x")
            line.append(name if action.nargs == 0 else f"{name}={value}")
    assert parser.checked(line).config.seed == 3 and len(line) >= 5


def test_jax_is_not_loaded_for_help_and_mistakes():
    lines = [
        ["--help"], ["help", "config"], ["x"], ["train", "digits", "--y"],
        ["--config=digits", "--workdir=w", "--mode=fly"], ["eval", "nowhere"], ["data", "prepare"],
        ["score", "digits", "nowhere"], ["sample", "digits", "-o", "x.jpg"], ["report", "nowhere"],
        ["verify", "nowhere"], ["export", "nowhere", "x"], ["export", ".", "x.pth"],
        ["export", ".", "x.safetensor"],
        ["sample", "nowhere"], ["score", "nowhere", "."], ["completion", "bash"],
        *([command, "--help"] for command in COMMANDS),
    ]  # fmt: skip
    code = (
        "import sys\nfrom scoremle.cli.main import main\n"
        f"for line in {lines!r}:\n"
        "    code = main(line)\n"
        "    loaded = {'jax', 'flax', 'numpy', 'orbax'} & set(sys.modules)\n"
        "    assert code in (0, 2) and not loaded, (line, code, loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The short form and the published one


def test_a_command_is_its_mode():
    published = ["--config=digits", "--workdir=w", "--config.training.sde=subvpsde"]
    for command, mode in (("train", "train"), ("eval", "eval"), ("train-deq", "train_deq")):
        words = ["digits", "w"] if command == "train" else ["w", "--config=digits"]
        short = parser_of(command).checked([*words, "--config.training.sde", "subvpsde"])
        assert short == parser_of("").checked([*published, f"--mode={mode}"])


def test_a_training_goes_on_by_its_workdir_alone(tmp_path, monkeypatch):
    config = parser_of("train").checked(["digits", "w", "--config.model.nf=8"]).config
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "config.json").write_text(config.to_json())
    monkeypatch.chdir(tmp_path)
    settings = parser_of("train").checked(["digits"])  # a workdir whose name is that of a config
    assert (settings.workdir, settings.config) == ("digits", config)
    settings = parser_of("train").checked(["digits", "--workdir=w"])
    assert (settings.workdir, settings.config.model.nf) == ("w", 16)
    assert parser_of("train").checked(["digits", "w"]).config.model.nf == 16


def test_a_flow_dequantizer_has_its_config(tmp_path):
    """To evaluate with it, and to go on training it; the model's own is that of the workdir."""
    for place, line in (
        (tmp_path, "--config.optim.lr=3e-3"),
        (tmp_path / "flow", "--config.optim.lr=1e-3 --config.deq.filters=8"),
    ):
        config = parser_of("train").checked(["digits", str(place), *line.split()]).config
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(config.to_json())
    flow = [str(tmp_path), "--deq-folder=flow"]
    for mode, lr in (("eval", 3e-3), ("train_deq", 1e-3)):
        config = parser_of(mode.replace("_", "-")).checked(flow).config
        assert (config.deq.filters, config.optim.lr) == (8, lr)
    assert parser_of("eval").checked([str(tmp_path)]).config.deq.filters == 32
    published = [f"--workdir={tmp_path}", "--deq_folder=flow", "--mode=train_deq"]
    assert parser_of("").checked(published).config == parser_of("train-deq").checked(flow).config


@pytest.mark.parametrize(
    "line",
    ["w --config digits --config.eval.bound --eval-folder=out",
     "--config.eval.bound w --config=digits --eval_folder out",
     "--eval-folder out --config.eval.bound=true --config digits w",
     "--workdir=w --config=digits --eval_folder=out --config.eval.bound"],
)  # fmt: skip
def test_words_may_be_anywhere_among_the_flags(line):
    settings = parser_of("eval").checked(line.split())
    found = (settings.workdir, settings.eval_folder, settings.config.eval.bound)
    assert found == ("w", "out", True)


@pytest.mark.parametrize("line", ["plan digits", "train digits --print-config"])
def test_what_writes_nothing_needs_no_folder(line):
    options = parser_of(line.partition(" ")[0]).checked(line.split()[1:])
    assert options.config.data.dataset == "digits" and not options.workdir


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train", "missing CONFIG"),
        ("train digits", "missing WORKDIR"),
        ("train digits w x", "unexpected argument 'x': scoremle train takes"),
        ("decompress m x.bits -o w", "decompress takes file;"),
        ("decompress x.bits", "--out"),
        ("compress digits x.npy", "--out"),
        ("anomaly fit digits x.npy", "--out"),
        ("stats digits --weights=x.npz", "--out"),
        ("stats digits --out=x.npz", "--weights"),
        ("anomaly score d images x", "anomaly score takes"),
        ("train digits w --mode=eval", "unknown flag --mode"),
        ("train digits w --json", "--json is for"),
        ("plan", "missing CONFIG"),
        ("eval", "missing WORKDIR"),
        ("eval w x --config=digits", "unexpected argument 'x'"),
        ("eval w", "no folder w"),
        ("eval digits", "no folder digits"),
        ("score digits . --steps=9", "--estimator=steps"),
        ("score digits . --correct --estimator=bound", "--correct"),
        ("score digits . --correct --label=all", "--correct"),
        ("score digits . --profile --label=all", "--profile is under one label"),
        ("score digits . --engine=ray --out=/proc/version", "must be a folder"),
        ("score digits . --estimator=steps", "no chain"),
        ("score digits . --label=3", "no class labels"),
        ("sample digits --label=all", "no class labels"),
        ("score digit .", "mean digits?"),
        ("score digits . --out=/proc/x.csv", "can't write --out=/proc/x.csv"),
        ("score digits . --page=/proc/x.html", "can't write --page=/proc/x.html"),
        ("sample digits -o /proc/x.npy", "--out=/proc/x.npy"),
        ("import nofile.pth", "file nofile.pth"),
        ("train digits w --config.trainig=3", "mean training?"),
        ("train digits w --config.train.n_iters=3", "mean training.n_iters?"),
        ("train digits w --config.n_iter=3", "training.n_iters or deq.n_iters?"),
        ("train digits w --config.evil.bound=1", "mean eval.bound?"),
        ("train digits w --print-confg", "mean --print-config?"),
        ("data show digits --splot=test", "unknown flag --splot"),
        ("data show digits -x", "unknown flag -x"),
        ("data show digits --out=x.png", "scoremle data show --help"),
        ("data prepare x --limt=3", "scoremle data prepare --help"),
        ("anomaly", "required: COMMAND"),
        ("sample digits --number=3", "see scoremle sample --help"),
        ("score digits . --workers=2", "--engine=ray"),
        ("score digits -- . --repeats=1", "--repeats=1 is not a flag after --"),
        ("data prepare -- . --size=3", "--size=3 is not a flag after --"),
    ],
)
def test_mistakes_in_commands(line, words, capsys):
    assert cli.main(line.split()) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    ["score digits x.npy --out=x.csv", "score digits x.npy --out=y.csv --page=x.html",
     "score digits x.npy", "sample digits", "sample digits --log-prob",
     "sample digits -o x.npz", "compress digits x.npy -o x.npz", "decompress x.bits -o x.npz",
     "anomaly fit digits x.npy --out=x.npz", "anomaly score x.npz x.npy --out=x.csv",
     "anomaly score x.npz x.npy --out=y.csv --page=x.html", "export . x.safetensors",
     "stats digits --weights=w --out=x.npz", "convert-inception x.npy x.npz"],
)  # fmt: skip
def test_a_file_is_written_over_by_force_alone(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unset = "scores.csv", "samples.png", "samples.npz"
    for name in ("x.npy", "x.npz", "x.csv", "x.html", "x.bits", "x.safetensors", *unset):
        (tmp_path / name).write_text("precious")
    command, *words = line.split()
    with pytest.raises(UserError, match="--force"):
        parser_of(command).checked(words)
    assert parser_of(command).checked([*words, "--force"]).force


def test_a_folder_of_the_user_is_found_behind_a_flag(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    out = [parser_of("sample").parse_args(["digits", f"--out={name}"]).out
           for name in ("~/x.png", "~x.png", "x~/y.png")]  # fmt: skip
    assert [*map(str, out)] == ["/home/me/x.png", "~x.png", "x~/y.png"]
    flags = ["digits", "--workdir=~/w", "--config.data.path=~/a=~b"]
    options = parser_of("train").checked(flags)
    assert (options.workdir, options.config.data.path) == ("/home/me/w", "/home/me/a=~b")


def test_a_flag_may_have_underscores_and_no_name_of_a_file_is_changed():
    for name in (["pics--a_b"], ["--", "--a_b"]):
        words = ["digits", "--out=res--my_run", "--skip_bad", *name]
        options = parser_of("score").parse_args(words)
        found = str(options.images), str(options.out), options.skip_bad
        assert found == (name[-1], "res--my_run", True)


def test_names_may_begin_with_a_dash():
    """After --, in any place: as paths, which can be named again."""
    for line, field, found in (
        ("verify -- -a", "path", "-a"), ("report -- -a b", "workdirs", [Path("-a"), Path("b")]),
        ("score -- -a -b.npy", "images", "-b.npy"), ("score -- -a -b.npy", "model", "./-a"),
    ):  # fmt: skip
        command, *words = line.split()
        options = vars(parser_of(command).parse_args(words))
        value = options[field]
        assert value == found or str(value) == found, (line, options)


@pytest.mark.parametrize("place", [".", "/", "", ".."])
@pytest.mark.parametrize(
    "line",
    ["score digits x.npy --out=", "score digits x.npy --page=", "sample digits --out=",
     "compress digits x.npy --out=", "decompress x.npy --out=",
     "anomaly fit digits x.npy --out=", "anomaly score x.npy x.npy --out=",
     "anomaly score x.npy x.npy --page=", "stats digits --weights=w --out=",
     "convert-inception x.npy ", "export x.npy ", "data show digits --picture=",
     "data prepare digits --into="],
)  # fmt: skip
def test_a_folder_is_no_file_to_write(line, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").touch()
    command, *words, last = line.split(" ")
    with pytest.raises(UserError, match=r"write|there|exists" if place else "empty"):
        parser_of(command).checked([*words, last + place])
    assert [*tmp_path.iterdir()] == [tmp_path / "x.npy"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [("score digits x.npy --out=", ".csv"), ("score digits x.npy --page=", ".html"),
     ("anomaly score x.json x.npy --out=", ".csv"), ("report . --out=", ".html"),
     ("anomaly score x.json x.npy --page=", ".html")],
)  # fmt: skip
def test_a_table_and_a_page_have_the_names_of_such(line, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.npy", "x.json"):
        (tmp_path / name).touch()
    command, *words, last = line.split()
    with pytest.raises(UserError, match="must end in"):
        parser_of(command).checked([*words, f"{last}y.txt"])
    for name in (f"y{kind.upper()}", "y"):
        parser_of(command).checked([*words, last + name])


@pytest.mark.parametrize(
    "line",
    ["score x.pt x.npy --out=x.pt", "compress x.pt x.npy -o x.pt",
     "compress digits x.npy -o digits", "anomaly fit x.pt x.npy --out=x.pt",
     "anomaly score x.json x.npy --out=x.json",
     "anomaly score x.json x.npy --out=x.csv --page=x.json",
     "anomaly score x.json x.npy --model=x.pt --out=x.pt",
     "stats digits --weights=x.npz --out=x.npz"],
)  # fmt: skip
def test_what_a_command_reads_is_not_written_over(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.pt", "x.npy", "x.json", "x.npz"):
        (tmp_path / name).write_text("precious")
    command, *words = line.split()
    with pytest.raises(UserError, match="two files"):
        parser_of(command).checked([*words, "--force"])


def test_a_link_to_a_file_is_not_written_over(tmp_path):
    target, link = tmp_path / "x.csv", tmp_path / "link.csv"
    target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(UserError, match=f"target, {target}"):
        checks.writable("--out=", link, force=True)


def test_a_pipe_may_be_named_for_two_files():
    heard, said = os.pipe()
    pipe = Path(f"/dev/fd/{said}")
    checks.different((), pipe, pipe)
    for end in (heard, said):
        os.close(end)
    with pytest.raises(UserError, match="two files"):
        checks.different((), Path("x"), Path("./x"))


def test_the_config_is_printed_with_the_flags(capsys):
    flag = "--config.sampling.method=ddim"
    lines = printed(capsys, "--config=digits", "--print-config", flag).splitlines()
    assert {"model.nf = 16", "sampling.steps = 100", "eval.end_ckpt = unset"} < set(lines)
    assert len(lines) == len(MEANINGS)
    for command in ("train", "plan"):
        text = printed(capsys, command, "digits", "--print-config", "--json", flag)
        assert json.loads(text)["sampling"]["steps"] == 100


COMPLETED = [
    ("ev", "eval"),
    ("train fashion_mnist1", "fashion_mnist14"),
    ("eval w --config.eval.bound_t", "--config.eval.bound_times"),
    ("eval w --js", "--json"),
    ("data show digits --pi", "--picture"),
    ("data pre", "prepare"),
    ("help exit", "exit-codes"),
    ("score digits --rep", "--repeats"),
    ("train digits w --zzz", ""),
]


@pytest.mark.parametrize(("line", "found"), COMPLETED)
def test_bash_completes(line, found, capsys, tmp_path):
    (tmp_path / "script").write_text(printed(capsys, "completion", "bash"))
    words = ["scoremle", *line.split()]
    code = (
        f"source {tmp_path / 'script'}; COMP_WORDS=({shlex.join(words)});"
        f" COMP_CWORD={len(words) - 1}; _shtab_scoremle; echo ${{COMPREPLY[@]}}"
    )
    assert subprocess.check_output(["bash", "-c", code], text=True).strip() == found


@pytest.mark.skipif(not shutil.which("fish"), reason="needs the shell fish")
@pytest.mark.parametrize(("line", "found"), COMPLETED)
def test_fish_completes(line, found, capsys, tmp_path):
    (tmp_path / "script").write_text(printed(capsys, "completion", "fish"))
    code = f"source {tmp_path / 'script'}; complete -C {shlex.quote(f'scoremle {line}')}"
    environment = {**os.environ, "HOME": str(tmp_path)}
    told = subprocess.check_output(["fish", "-c", code], text=True, cwd=tmp_path, env=environment)
    words = [word.partition("\t")[0] for word in told.splitlines()]
    assert found in words if found else not words


@pytest.mark.parametrize("shell", ["fish", "zsh"])
def test_a_script_has_the_line_of_each_command(shell, capsys):
    script = re.sub(r"[^a-z]", "", printed(capsys, "completion", shell).lower())
    for _, line in COMMANDS.values():
        assert re.sub(r"[^a-z]", "", line.lower()) in script, line


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs the shell zsh")
def test_zsh_takes_the_script(capsys, tmp_path):
    (tmp_path / "script").write_text(printed(capsys, "completion", "zsh"))
    code = f"source {tmp_path / 'script'}; print -- $_comps[scoremle]"
    environment = {**os.environ, "HOME": str(tmp_path)}
    told = subprocess.check_output(["zsh", "-f", "-c", code], text=True, env=environment)
    assert "_scoremle" in told


@pytest.mark.parametrize(
    ("line", "level"),
    [("verify x", "INFO"), ("--debug verify x", "DEBUG"), ("verify x --debug", "DEBUG")],
)
def test_debug_may_be_anywhere(line, level, monkeypatch):
    """It is not an argument of a command: only the log becomes longer."""
    seen = []

    def run(arguments):
        seen.append((arguments, logging.getLevelName(logging.getLogger("scoremle").level)))
        return 0

    monkeypatch.setattr(cli, "_run", run)
    assert cli.main(line.split()) == 0
    assert seen == [(["verify", "x"], level)]

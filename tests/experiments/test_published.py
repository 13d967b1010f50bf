"""The two published commands, run from a copy of scripts/ so that ../../weight lies in a temporary tree."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from fspmu.experiments import published, published_names
from fspmu.experiments.published_doors import training_flags, unlearning_flags
from fspmu.pretraining import METHODS as PRETRAINING

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = "--epochs 2 --model smallcnn --width 4 --limit 120 --lr 0.05 --device cpu"
STEP_1 = f"--dataset digits --noise_rate 0.5 --noise_mode sym --save True --tsne True {SMALL}"
STEP_2 = f"--dataset digits --noise_rate 0.5 --noise_mode sym --method pro  --pred gmm {SMALL}"
NAME = "digits-smallcnn-sym-0.5-ce-seed1-e2-lr0.05-width4-limit120"
SELECTORS = f"--dataset digits --noise_rate 0.5 --noise_mode sym {SMALL}"


def plant(root: Path) -> Path:
    """Copy the scripts into `root`; return their folder, which sees root/weight as ../../weight."""
    scripts = root / "clone" / "scripts"
    scripts.mkdir(parents=True)
    for name in ("main.py", "unlearning.py"):
        shutil.copy(SCRIPTS / name, scripts)
    return scripts


def launch(script: str, flags: str, scripts: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, script, *flags.split()], cwd=scripts, env=environment, capture_output=True, text=True, check=False)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Return the scripts of a tree where step 1 has saved its run and its picture."""
    scripts = plant(tmp_path_factory.mktemp("saved"))
    done = launch("main.py", STEP_1, scripts)
    assert done.returncode == 0, done.stderr
    (scripts.parent / "stdout").write_text(done.stdout)
    return scripts


@pytest.fixture
def fresh(tmp_path) -> Path:
    return plant(tmp_path)


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs a script as `python script flags` does, within this process: (exit code, output, errors)."""

    def run(script: str, flags: str | list[str], scripts: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(scripts)
        monkeypatch.setattr(sys, "argv", [script, *(flags.split() if isinstance(flags, str) else flags)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(script, run_name="__main__")
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return run


def test_step_1_saves_what_the_tree_of_the_readme_shows(saved):
    weight = saved.parents[1] / "weight"
    assert (weight / "net" / NAME / "model.safetensors").exists()
    assert all((weight / "TSNE" / f"{NAME}.{kind}").stat().st_size for kind in ("png", "svg"))
    said = (saved.parent / "stdout").read_text()
    assert re.search(r"last +best\*", said) and "* picked on test data" in said
    assert f"saved: {weight / 'net' / NAME}" in said
    assert f"picture: {weight / 'TSNE' / NAME}.png" in said
    assert json.loads((weight / "net" / NAME / "config.json").read_text())["config"]["settings"]["epochs"] == 3  # 0..2


def test_step_2_finds_the_run_by_its_selectors(saved, call):
    before = set(files_below(saved.parents[1]))
    code, out, err = call("unlearning.py", STEP_2 + " --e_r 2 --e_n 1 --tsne 2", saved)
    assert code == 0, err
    assert re.search(r"before +last +best\*", out) and "* picked on test data" in out and "positive = wrong label" in out
    for figure in ("precision", "recall", "F1", "AUC", "retain purity", "clean recall"):
        assert re.search(rf"{figure} \(%\) +\d+\.\d\d", out), figure
    assert "forget set, with the given labels (should fall)" in out and "samples forward" in out
    assert "unlearn-fspmu-gmm" in out
    assert "no weights saved" in out
    pictures = {f"weight/TSNE/{NAME}-unlearn-fspmu-gmm-e_n1-e_r2.{kind}" for kind in ("png", "svg")}
    assert set(files_below(saved.parents[1])) - before == pictures
    assert all(f"picture: {saved.parents[1] / picture}\n" in out for picture in pictures)


def test_a_saved_run_is_not_done_again(saved, call):
    code, out, _ = call("main.py", STEP_1.replace("--tsne True", ""), saved)
    assert code == 0
    assert f"already done, nothing changed: {saved.parents[1] / 'weight' / 'net' / NAME}" in out


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "unlearn-fspmu-known"),
        (["--pred", "None"], "unlearn-fspmu-known"),
        (["--pred", ""], "unlearn-fspmu-known"),
        (["--pred"], "unlearn-fspmu-known"),
        (["--pred", "GMM", "--gmm-threshhold", ".7"], "unlearn-fspmu-gmm-gmm_threshhold0.7"),
        (["--pred", "gmm", "--gmm_threshhold", ".5"], "unlearn-fspmu-gmm"),
        (["--sample_rate", ".9"], "unlearn-fspmu-known-sample_rate0.9"),
        (["--random", "True", "--sample_rate", ".3"], "unlearn-fspmu-random-sample_rate0.3"),
        (["--method", "scrub", "--retain_bs", "64"], "unlearn-scrub-reference-known-retain_bs64"),
        (["--scratch"], "unlearn-retrain-reference-known"),
        (["--scratch", "True", "--method", "pro"], "unlearn-retrain-reference-known"),
    ],
)
def test_what_is_forgotten_and_how(saved, call, flags, name, monkeypatch):
    asked = []

    def stop(options):
        asked.append(options)
        raise published.InputError("enough")

    monkeypatch.setattr(published, "unlearn_run", stop)
    code, _, err = call("unlearning.py", [*SELECTORS.split(), "--save", "True", *flags], saved)
    assert (code, err) == (2, "fspmu: error: enough\n")
    assert asked[0].run.name == NAME
    assert asked[0].compute.out == asked[0].run / name
    if "--scratch" in flags:
        assert asked[0].settings.epochs == 3
        assert asked[0].settings.lr == 0.05


def test_explicit_flags_win_and_the_rest_comes_from_what_suits(saved, call, monkeypatch):
    asked = []
    monkeypatch.setattr(published, "unlearn_run", lambda options: asked.append(options) or sys.exit(0))
    flags = "--gamma 2 --delta 3 --zeta 4 --eta 5 --kd_T 6 --t 7 --e_n 1 --e_r 2 --forget_bs 8 --retain_bs 9"
    call("unlearning.py", f"{SELECTORS} {flags}", saved)
    call("unlearning.py", SELECTORS, saved)
    settings, default = asked[0].settings, asked[1].settings
    assert (settings.gamma, settings.delta, settings.zeta, settings.eta, settings.temperature, settings.t) == (2, 3, 4, 5, 6, 7)
    assert (settings.forget_epochs, settings.epochs, settings.forget_batch, settings.retain_batch) == (1, 2, 8, 9)
    assert (default.delta, default.zeta, default.gamma, default.t, default.epochs, default.forget_epochs) == (500, 0.5, 1, 0.25, 15, 5)


def test_step_2_keeps_what_it_is_asked_to(fresh, saved, call, tmp_path):
    weight = tmp_path / "elsewhere"
    shutil.copytree(saved.parents[1] / "weight" / "net", weight / "net")
    code, out, err = call("unlearning.py", f"{SELECTORS} --e_r 1 --save True --weight_dir {weight}", fresh)
    assert code == 0, err
    run = weight / "net" / NAME / "unlearn-fspmu-known-e_r1"
    assert (run / "model.safetensors").exists()
    assert f"saved: {run}" in out
    assert re.search(r"precision \(%\) +100\.00\s+recall \(%\) +100\.00", out)
    assert not (tmp_path / "weight").exists()
    code, out, _ = call("unlearning.py", f"{SELECTORS} --e-r 1 --save true --weight-dir {weight}", fresh)
    assert code == 0
    assert f"already done, nothing changed: {run}" in out


def test_save_false_leaves_nothing(fresh, call, tmp_path, monkeypatch):
    import_module("torch._dynamo")  # which makes a folder of its own for temporary files when it is first imported, as by an optimiser
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = files_below(tmp_path)
    code, out, err = call("main.py", f"{SELECTORS} --save False --tsne False", fresh)
    assert code == 0, err
    assert "no weights saved (--save False); step 2 needs a run with --save True" in out
    assert files_below(tmp_path) == before
    assert not list(scratch.iterdir())
    monkeypatch.setattr(published, "pretrain", interrupted)
    code, _, err = call("main.py", f"{SELECTORS} --save False", fresh)
    assert code == 130
    assert "stopped" in err
    assert not list(scratch.iterdir())


def interrupted(options):
    options.compute.out.mkdir(parents=True)
    raise KeyboardInterrupt


def test_missing_step_1_names_the_folder_the_command_and_the_nearest(saved, call):
    before = files_below(saved.parents[1])
    code, out, err = call("unlearning.py", SELECTORS.replace("0.5", "0.3") + " --seed 7", saved)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert str(saved.parents[1] / "weight" / "net" / NAME.replace("0.5", "0.3").replace("seed1", "seed7")) in err
    command = (
        "python main.py --dataset digits --noise_rate 0.3 --noise_mode sym --model smallcnn --seed 7 --epochs 2 --lr 0.05 --width 4 --limit 120 --save True"
    )
    assert f"run `{command}` first" in err
    assert f"nearest of the runs there: {NAME}" in err
    assert files_below(saved.parents[1]) == before


def test_step_2_takes_the_run_there_is_when_no_length_is_named(saved, call):
    code, out, err = call("unlearning.py", SELECTORS.replace("--epochs 2", "") + " --e_r 1 --e_n 1", saved)
    assert code == 0, err
    assert f"taking {NAME}" in err and out.startswith(f"{NAME}/unlearn-")


def test_the_command_that_step_2_names_makes_the_run_it_looks_for(fresh, call):
    _, _, err = call("unlearning.py", f"{SELECTORS} --seed 3 --step-size 5", fresh)
    parser, command = training_flags(), re.search(r"`python main.py (.*)`", err)
    named = published.StepOne.of(parser.read(command[1].split()))
    assert named.folder == published.StepOne.of(unlearning_flags().read(f"{SELECTORS} --seed 3 --step-size 5".split())).folder


def test_an_unfinished_step_1_is_named(fresh, call):
    folder = fresh.parents[1] / "weight" / "net" / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    code, _, err = call("unlearning.py", SELECTORS, fresh)
    assert code == 2
    assert f"step 1 has not finished in {folder}" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dataset digits --noise_mode SDN --noise_rate .1", "--noise_mode SDN needs cifar100"),
        ("--dataset cifar10 --noise_mode sdn --noise_rate .1", "--noise_mode SDN needs cifar100"),
        ("--dataset digits --noise_mode sim --noise_rate .1", "did you mean 'sym'?"),
        ("--dataset cifar11 --noise_mode sym --noise_rate .1", "did you mean 'cifar10'?"),
        ("--dataset digits --noise_mode sym --noise_rate 1.5", "'1.5' is not a fraction from 0 to 1"),
        ("--dataset digits --noise_mode sym --noise_rate nan", "'nan' is not a fraction from 0 to 1"),
        ("--dataset digits --noise_mode sym", "--noise_rate is missing"),
        ("--dataset digits", "--noise_mode is missing"),
        ("--noise_mode sym", "--dataset is missing"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --model preactresnet", "did you mean 'preactresnet18'?"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --save maybe", "--save: 'maybe' is neither True nor False"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --save 2", "--save: '2' is neither True nor False"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --epoch 3", "did you mean '--epochs'?"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --epochs x", "'x' is not a whole number"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --lr 0", "'0' is not a number above 0"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --device tpu", "tpu"),
        ("--dataset digits --noise_mode sym --noise_rate .5 --limit 20 --tsne True", "--tsne_per is 30"),
    ],
)
def test_step_1_refuses_with_one_sentence(fresh, call, flags, words):
    code, out, err = call("main.py", flags, fresh)
    assert (code, out) == (2, "")
    assert err.startswith("fspmu: error: ") and words in err
    assert err.count("\n") == 1
    assert not (fresh.parents[1] / "weight").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--method prow", "did you mean 'pro'?"),
        ("--pred gnm", "did you mean 'gmm'?"),
        ("--method scrub --delta 3", "--delta has no meaning for the method scrub-reference"),
        ("--scratch --e_r 3", "--e_r has no meaning for retraining from scratch"),
        ("--random True", "--random True needs --sample_rate"),
        ("--random True --sample_rate .3 --pred gmm", "give one of the two"),
        ("--sample_rate .3 --pred gmm", "--sample_rate has no meaning with --pred gmm"),
        ("--gmm_threshhold .3", "--gmm_threshhold has no meaning without --pred gmm"),
        ("--noise_mode none --noise_rate 0", "without noise the wrong labels are not known"),
        ("--noise_mode subclass", "--noise_mode SDN needs cifar100"),
        ("--tsne True --tsne_per 300", "--tsne_per is 300"),
    ],
)
def test_step_2_refuses_with_one_sentence(saved, call, flags, words):
    before = files_below(saved.parents[1])
    code, out, err = call("unlearning.py", f"{SELECTORS} {flags}", saved)
    assert (code, out) == (2, "")
    assert err.startswith("fspmu: error: ") and words in err
    assert err.count("\n") == 1
    assert files_below(saved.parents[1]) == before


def test_a_training_method_that_is_absent_is_refused_and_one_that_is_there_is_looked_for(fresh, call, monkeypatch):
    methods = {"ce": PRETRAINING["ce"]}
    for module in (published, published_names):
        monkeypatch.setattr(module, "PRETRAINING", methods)
    for name in ("DivideMix", "ProMix", "LongReMix", "LongRe-Mix"):
        code, _, err = call("unlearning.py", [*SELECTORS.split(), "--pretrain_method", name], fresh)
        assert code == 2
        assert f"no training method for --pretrain_method {name}" in err
    methods["longremix"] = replace(PRETRAINING["ce"], preset="nll")
    for name in ("LongReMix", "LongRe-Mix", "longremix"):
        code, _, err = call("unlearning.py", [*SELECTORS.split(), "--pretrain_method", name], fresh)
        assert code == 2
        assert "digits-smallcnn-sym-0.5-longremix-seed1" in err
        assert "--pretrain_method longremix" in err
    for name in ("None", ""):
        code, _, err = call("unlearning.py", [*SELECTORS.split(), "--pretrain_method", name], fresh)
        assert "digits-smallcnn-sym-0.5-ce-seed1" in err


def test_every_published_flag_is_accepted_in_both_spellings():
    selectors = (
        "--dataset cifar100 --noise_rate 0.1 --noise_mode SDN --model preactresnet18 --seed 1 --epochs 200 --batch_size 128 --lr .01 --step-size 100 "
        "--save False --tsne 1 --tsne_lr 350 --tsne_per 30 "
    )
    others = (
        "--method pro --pred None --pretrain_method DivideMix --gamma 5 --delta 1 --zeta -1 --eta 1 --kd_T .5 --e_n 5 --e_r 15 --forget_bs 512 --retain_bs 128 "
        "--gmm_threshhold .5 --random False --sample_rate .5 --scratch"
    )
    for parser, flags in ((training_flags(), selectors), (unlearning_flags(), selectors + others)):
        words = flags.split()
        dashed = [word.replace("_", "-") if word.startswith("--") else word for word in words]
        joined = re.sub(r"(--\S+) (?!--)(\S+)", r"\1=\2", flags).split()
        assert parser.read(words) == parser.read(dashed) == parser.read(joined)
    flags = training_flags().read(selectors.split())
    assert (flags.save, flags.tsne) == (False, True)
    step = published.StepOne.of(flags)
    assert step.folder.name == "cifar100-preactresnet18-SDN-0.1-ce-seed1-e200"
    assert step.folder.parent == Path.cwd().parents[1] / "weight" / "net"
    assert (step.options.noise.noise_mode, step.options.settings) == ("subclass", PRETRAINING["ce"].settings)


def test_own_images_of_the_same_name_do_not_meet(tmp_path):
    names = set()
    for place in ("a", "b"):
        folder = tmp_path / place / "cats dogs"
        folder.mkdir(parents=True)
        flags = training_flags().read(["--dataset", str(folder), "--noise_mode", "none"])
        names.add(published.StepOne.of(flags).folder.name)
    assert len(names) == 2
    assert all(re.fullmatch(r"cats_dogs-[0-9a-f]{6}-preactresnet18-none-0-ce-seed1-e200", name) for name in names)


def test_without_the_package_the_door_says_what_to_do(fresh):
    done = subprocess.run([sys.executable, "-S", "main.py"], cwd=fresh, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "source ../.venv/bin/activate" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.cifar
def test_the_documented_commands_on_cifar10(fresh, data_dir):
    small = f"--limit 400 --width 8 --epochs 1 --data_dir {data_dir}"
    done = launch("main.py", f"--dataset cifar10 --noise_rate 0.5 --noise_mode sym --save True --tsne True {small}", fresh)
    assert done.returncode == 0, done.stderr
    done = launch(
        "unlearning.py", f"--dataset cifar10 --noise_rate 0.5 --noise_mode sym --method pro  --pred gmm {small} --e_r 2 --save True --tsne True", fresh
    )
    assert done.returncode == 0, done.stderr
    weight, name = fresh.parents[1] / "weight", "cifar10-preactresnet18-sym-0.5-ce-seed1-e1-width8-limit400"
    repaired = weight / "net" / name / "unlearn-fspmu-gmm-e_r2"
    assert f"saved: {repaired}" in done.stdout
    assert files_below(weight / "TSNE") == sorted(f"{stem}.{kind}" for stem in (name, f"{name}-{repaired.name}") for kind in ("png", "svg"))


@pytest.mark.slow
@pytest.mark.cifar
def test_sdn_has_twenty_classes(fresh, data_dir, call):
    code, out, err = call(
        "main.py", f"--dataset cifar100 --noise_rate .2 --noise_mode SDN --limit 600 --width 8 --epochs 0 --save 1 --tsne 1 --data_dir {data_dir}", fresh
    )
    assert code == 0, err
    record = json.loads(next((fresh.parents[1] / "weight").glob("net/*/record.json")).read_text())
    assert len(record["data"]["classes"]) == 20
    code, out, err = call(
        "main.py", f"--dataset cifar100 --noise_rate .2 --noise_mode sym --limit 600 --width 8 --epochs 0 --tsne 1 --data_dir {data_dir}", fresh
    )
    assert code == 2
    assert "at most 20 classes" in err


@pytest.mark.slow
def test_a_picture_can_be_drawn_of_a_run_saved_without_one(fresh, call):
    call("main.py", f"{SELECTORS} --save True", fresh)
    folder = fresh.parents[1] / "weight" / "net" / NAME
    weights = (folder / "model.safetensors").read_bytes()
    code, out, err = call("main.py", f"{SELECTORS} --save True --tsne True", fresh)
    assert code == 0, err
    assert "already done" in out
    assert (folder / "model.safetensors").read_bytes() == weights
    assert files_below(fresh.parents[1] / "weight" / "TSNE") == [f"{NAME}.png", f"{NAME}.svg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", ["--scratch", "--method scrub --e_r 1", "--random True --sample_rate .3 --e_r 1", "--sample_rate .9 --e_r 1", "--method finetune --e_r 1"]
)
def test_every_way_to_forget_runs(saved, call, flags):
    code, out, err = call("unlearning.py", f"{SELECTORS} {flags}", saved)
    assert code == 0, err
    assert "Detection, positive = wrong label" in out

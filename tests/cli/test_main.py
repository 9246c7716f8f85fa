import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import manualgrad as mg
from manualgrad.cli.main import COMMANDS, main
from tests.cli.command_runs import manualgrad


def without(package, tmp_path):
    """A Python whose packages are the installed ones without `package`, as in an environment where it is missing."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for directory in map(Path, sys.path):
        if directory.name == "site-packages":
            for entry in directory.iterdir():
                hidden = entry.name.startswith((package, f"{package.replace('_', '-')}", "__pycache__"))
                if not hidden and entry.suffix not in (".pth", ".egg-link") and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)
    if not (packages / "manualgrad").exists():
        import manualgrad as installed

        (packages / "manualgrad").symlink_to(Path(installed.__file__).parent)
    start = f"import sys; sys.path.append({str(packages)!r}); from manualgrad.cli.main import main; sys.exit(main())"
    return sys.executable, "-S", "-c", start


def test_without_lightning_fit_names_the_pip_command(tmp_path):
    run = manualgrad(tmp_path, "fit", python=without("lightning", tmp_path))
    assert run.returncode == 1
    assert run.stderr == (
        "manualgrad: error: manualgrad fit expected the package `lightning`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]", '
        'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"\n'
    )


def test_without_sklearn_fit_names_the_pip_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # how Python marks a module that cannot be imported
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == (
        "manualgrad: error: DigitsDataModule expected the package `scikit-learn`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]", '
        'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"\n'
    )


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in printed and command.summary in printed
    assert main([]) == 2


def test_help_imports_nothing_optional():
    code = "from manualgrad.cli.main import main; main(['--help']); import sys; "
    code += "print({'lightning', 'jsonargparse'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.endswith("set()\n")


def test_version(capsys):
    from manualgrad import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"manualgrad {__version__}\n"


def test_print_config_shows_every_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for line in ("max_epochs: 20", "manualgrad.lightning.BackpropModule", "lr_schedule: cosine", "batch_size: 32"):
        assert line in printed


def test_an_unknown_activation_is_the_library_s_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Unknown activation 'cub'. Known: identity, relu, ") as error:
        mg.Dense(1, 1, activation="cub")
    assert main(["fit", "--model.activation", "cub"]) == 1
    assert capsys.readouterr().err == f"manualgrad: error: {error.value}\n"


class Program:
    """A pickle that runs a program where it is loaded."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


DIGITS = {"hyper_parameters": {"sizes": [64, 10], "lr_schedule": "cosine"}}
NOT_A_CHECKPOINT = (
    "Pass {which}that `manualgrad fit` has written, for example lightning_logs/version_0/checkpoints/last.ckpt."
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bake"],
            f"expected a command, got 'bake'. Known: {', '.join(COMMANDS)}.",
        ),
        (
            ["fit", "--model.lr", "-1"],
            "Invalid learning rate: -1.0. Expected a finite number >= 0, for example lr=0.1.",
        ),
        (
            ["fit", "--model.loss", "huber"],
            'Parser key "model": Problem with given class_path \'manualgrad.lightning.BackpropModule\': Parser key "loss": '
            "Expected a typing.Literal['quadratic', 'cross_entropy', 'binary_cross_entropy']. Got value: huber",
        ),
        (
            ["fit", "--model.sizes", "64,30,10"],
            'Parser key "model": Problem with given class_path \'manualgrad.lightning.BackpropModule\': Parser key "sizes": '
            'Expected a list in brackets, for example "[64, 30, 10]". Got value: 64,30,10',
        ),
        (["fit", "--bogus", "3"], "unrecognized arguments: --bogus 3"),
        (["compare", "--bogus"], "unrecognized arguments: --bogus"),
        (
            ["test", "--ckpt_path", "nowhere.ckpt"],
            "Expected the path of a checkpoint, got 'nowhere.ckpt', which is no file. "
            + NOT_A_CHECKPOINT.format(which="one "),
        ),
        (
            ["compare", "--checkpoint", "text.ckpt"],
            "Expected a checkpoint that Lightning wrote, got 'text.ckpt', which is not one. "
            + NOT_A_CHECKPOINT.format(which="a file "),
        ),
        (
            ["fit", "--ckpt_path", "tensor.ckpt"],
            "Expected a checkpoint that Lightning wrote, got 'tensor.ckpt', which is not one. "
            + NOT_A_CHECKPOINT.format(which="a file "),
        ),
        *[
            (
                [command, option, name],
                f"Expected a checkpoint that Lightning wrote, got {name!r}, {reason}. "
                + NOT_A_CHECKPOINT.format(which="a file "),
            )
            for name, reason in (
                ("empty.ckpt", "which is not one"),
                ("program.ckpt", "which is not one"),
                ("list.ckpt", "in which 'state_dict' is of type list, not dict"),
                ("odd.ckpt", "in which 'hyper_parameters' is of type list, not dict"),
                ("odd_class.ckpt", "in which 'hyper_parameters' are not values by name"),
                ("odd_step.ckpt", "in which 'global_step' is of type str, not int"),
                ("odd_options.ckpt", "in which the options of the model name no class"),
            )
            for command, option in (("fit", "--ckpt_path"), ("test", "--ckpt_path"), ("compare", "--checkpoint"))
        ],
        (
            ["fit", "--ckpt_path", "weights.ckpt"],
            "Expected a checkpoint to go on training from, got 'weights.ckpt', which holds the weights alone. "
            "Save one with save_weights_only=False, or test it with `manualgrad test`.",
        ),
        (
            ["compare", "--json", "nowhere/comparison.json"],
            "Expected `--json` in a folder that exists, got 'nowhere/comparison.json'. "
            "Make the folder first, or name another file.",
        ),
        (
            ["fit", "--trainer.default_root_dir", "text.ckpt/runs"],
            "Expected a folder in which logs and checkpoints can be written, got 'text.ckpt/runs': '{here}/text.ckpt' is no "
            "folder. Pass another with --trainer.default_root_dir.",
        ),
        (
            ["fit", "--ckpt_path", "last"],
            "Expected a checkpoint of an earlier run below lightning_logs, found none. "
            "Pass the path of one, or leave --ckpt_path out.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("text.ckpt").write_text("root:x:0:0:root:/root:/bin/bash\n")
    torch.save(torch.zeros(2), "tensor.ckpt")
    Path("empty.ckpt").touch()
    version = {"pytorch-lightning_version": "2.6.6"}
    torch.save({"state_dict": [1, 2], **version}, "list.ckpt")
    torch.save({"state_dict": {}, **version, **DIGITS}, "weights.ckpt")
    odd_ones: dict[str, dict[str, Any]] = {
        "odd": {"hyper_parameters": [1]},
        "odd_class": {"hyper_parameters": {"_class_path": 3}},
        "odd_step": {"global_step": "3"},
        "odd_options": {"manualgrad.options": {"model": "mine.Net"}},
    }
    for name, odd in odd_ones.items():
        torch.save({"state_dict": {}, **version, **DIGITS, "optimizer_states": [], **odd}, f"{name}.ckpt")
    Path("program.ckpt").write_bytes(pickle.dumps({"state_dict": Program(), **version}))
    assert main(arguments) > 0
    assert capsys.readouterr().err == f"manualgrad: error: {message.replace('{here}', str(tmp_path))}\n"
    assert not Path("lightning_logs").exists() and not Path("was_run").exists()


def test_names_from_outside_cannot_act_on_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("\x1b[2J\x1b[31mred", "good\rbad", "abc\u202ecba", "x" * 4000):
        Path("odd.ckpt").unlink(missing_ok=True)
        options = {"_class_path": f"mine.{name}", "sizes": [1]}
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "hyper_parameters": options}, "odd.ckpt")
        for arguments in (
            ["fit", "--ckpt_path", f"{name}.ckpt"],
            ["fit", "--model", name],
            ["fit", f"--{name}", "1"],
            [name],
            ["compare", "--json", f"{name}/x.json"],
            ["compare", "--checkpoint", "odd.ckpt"],
            ["explain", "--checkpoint", "odd.ckpt"],
            ["explain", "--out", f"{name}/page.html"],
        ):
            assert main(arguments) > 0
            error = capsys.readouterr().err
            assert error.replace("\n", "").isprintable() and len(error) < 2500, arguments
            assert error.startswith("manualgrad: error: ")

"""The command line: whole outputs, failures included. A failure is one line on the error stream and an exit code."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from normscope.paper.exhibit import exhibits

QUICK = ["reproduce", "figure5", "--net", "resnet8", "--seeds", "3"]


@pytest.fixture
def normscope(run_normscope, monkeypatch, tmp_path):
    """Run the command line in an empty folder, where CIFAR-10 cannot be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NORMSCOPE_DATA", raising=False)
    return run_normscope


def test_reproduce_ends_with_the_claims_and_the_reports_path(normscope, tmp_path):
    code, out, _ = normscope(*QUICK)
    assert code == 0
    lines = out.splitlines()
    report = tmp_path / "reproduction" / "digits" / "report.html"
    assert lines[-1] == str(report.relative_to(tmp_path))
    assert report.is_file()
    assert lines[-2].startswith("no claims"), "eight layers are not asked"
    assert sorted(p.name for p in report.parent.iterdir()) == ["figure5.nc", "manifest.json", "report.html"]


def test_a_second_run_measures_nothing_again_and_keeps_the_note_of_the_first(normscope, tmp_path):
    normscope(*QUICK, "--note", "On <battery>.")
    result = tmp_path / "reproduction" / "digits" / "figure5.nc"
    before = result.stat().st_mtime_ns
    assert normscope(*QUICK)[0] == 0
    assert result.stat().st_mtime_ns == before
    assert "<p>On &lt;battery&gt;.</p>" in result.with_name("report.html").read_text()
    assert normscope(*QUICK[:-1], "4")[0] == 0
    assert result.stat().st_mtime_ns != before, "another number of seeds is another measurement"


def test_report_is_made_again_from_the_results_alone(normscope, tmp_path):
    normscope(*QUICK)
    report = tmp_path / "reproduction" / "digits" / "report.html"
    report.unlink()
    code, out, _ = normscope("report", str(report.parent))
    assert (code, out.splitlines()[-1]) == (0, str(report))
    assert "Activations against depth" in report.read_text()


def test_runs_as_a_module_of_python_too(normscope):
    done = subprocess.run([sys.executable, "-m", "normscope", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, normscope("--version")[1])


def test_exhibits_lists_every_exhibit(normscope):
    code, out, _ = normscope("exhibits")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(exhibits())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "figur5"], "unknown exhibit 'figur5': did you mean 'figure5'?"),
        (["reproduce", "figure5", "--data", "digit"], "unknown data set 'digit': did you mean 'digits'?"),
        (["reproduce", "figure5", "--net", "resnet21"], "ResNet depth must be 6n+2, not 21: 20 and 26 are nearest"),
        (["reproduce", "figure5", "--data", "cifar10", "--data-dir", "nowhere"], "nowhere"),
        (["reproduce", "figure5", "--device", "abacus"], "no device 'abacus' here: there is cpu"),
        (["reproduce", "figure5", "--net", "resnet8", "--batch-size", "1"], "a batch of one example"),
        (["reproduce", "figure5", "--net", "resnet8", "--batch-size", "100000"], "batch_size"),
        (["reproduce", "figure5", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["reproduce", "figure5", "--sedes", "3"], "No such option: --sedes"),
        (["reproduced"], "No such command 'reproduced'"),
        (["report", "nowhere"], "no results in nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(normscope, tmp_path, arguments, message):
    code, out, err = normscope(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("normscope: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("*.*")), "nothing half-written"


def test_a_damaged_copy_of_the_data_is_named_and_refused(normscope, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(bytes(3073))
    code, _, err = normscope("reproduce", "figure5", "--data", "cifar10", "--data-dir", str(tmp_path / "data"))
    assert code == 2
    assert err.count("\n") == 1
    assert "data_batch_1.bin" in err


def test_a_file_in_the_place_of_the_output_folder(normscope, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, _, err = normscope(*QUICK, "--out", "taken")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write taken" in err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder(normscope, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = normscope(*QUICK, "--out", "locked")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write locked" in err


def test_a_full_disk_leaves_no_half_written_result(tmp_path):
    """A limit on the size of any file written stands for a full disk: the write fails midway in both."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from normscope.cli import main; main()", *QUICK, "--out", "full"],
        cwd=tmp_path,
        env=environment,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "normscope: cannot write full/unfinished/figure5-batch-seed0.nc: File too"
    )
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]


def test_a_damaged_result_is_named(normscope, tmp_path):
    normscope(*QUICK)
    result = tmp_path / "reproduction" / "digits" / "figure5.nc"
    result.write_bytes(result.read_bytes()[:1000])
    code, _, err = normscope("report", str(result.parent))
    assert (code, err.count("\n")) == (2, 1)
    assert "figure5.nc is damaged" in err
    assert normscope(*QUICK)[0] == 0, "reproduce measures a damaged result again"


@pytest.mark.parametrize(("words", "names"), [(["check"], "check"), (["sweep", "--wrong"], "sweep"), (["chek"], "")])
def test_a_wrong_use_points_to_the_help_of_its_command(normscope, words, names):
    code, _, err = normscope(*words)
    assert code == 2
    assert err.strip().endswith(f"See {' '.join(['normscope', names]).strip()} --help") and len(err.splitlines()) == 1


def test_without_a_command_the_help_is_all(normscope):
    code, out, err = normscope()
    assert code == 2 and "sweep" in out + err and "See normscope" not in out + err


def test_the_help_of_sweep_names_the_tables_of_a_spec(normscope):
    assert "[base]" in (out := normscope("sweep", "--help")[1]) and "[axes]" in out


def test_help_loads_nothing_slow():
    code = """
import sys
from normscope.cli import main
sys.argv = ["normscope", "--help"]
try:
    main()
finally:
    assert not {"torch", "scipy", "xarray", "matplotlib"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "reproduce" in done.stdout


def test_version(normscope):
    import normscope as package

    assert normscope("--version")[:2] == (0, f"normscope {package.__version__}\n")


def test_a_bug_is_one_line_too(normscope, monkeypatch):
    monkeypatch.setattr("normscope.data.load_data", lambda *_, **__: None)
    monkeypatch.delenv("NORMSCOPE_TRACEBACK", raising=False)
    code, _, err = normscope(*QUICK)
    assert code == 2
    assert err.startswith("normscope: bug in normscope: AttributeError: 'NoneType' object has no attribute ")
    assert err.endswith("; set NORMSCOPE_TRACEBACK=1 to see where\n")
    monkeypatch.setenv("NORMSCOPE_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in normscope(*QUICK)[2]


def test_what_the_users_own_code_raises_is_no_bug(normscope, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("normscope.data.load_data", broken)
    code, _, err = normscope(*QUICK)
    assert code == 2
    assert err.startswith("normscope: your code raised ZeroDivisionError: oops (at ")


def test_ctrl_c_is_one_line(normscope, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("normscope.data.load_data", interrupted)
    code, _, err = normscope(*QUICK)
    assert code == 130
    assert err.lstrip() == "normscope: interrupted: what is done is kept, run the same command to go on\n"


def test_results_stand_where_they_were_asked_for(normscope, tmp_path):
    code, out, _ = normscope(*QUICK, "--out", "a/b")
    assert (code, out.splitlines()[-1]) == (0, str(Path("a/b/report.html")))

"""What every error of the package is: one line of bounded length."""

import pytest

from deflect_hf.errors import LONGEST_MESSAGE, DataError, user_errors


def test_a_message_is_one_line_of_bounded_length_whatever_is_quoted() -> None:
    quoted = "a.vrt in b.vrt\n" * 100_000
    error = DataError(f"a.vrt is damaged (recursion:\n{quoted}): make it again.")
    assert len(str(error)) < LONGEST_MESSAGE + 10 and "\n" not in str(error)
    assert str(error).startswith("a.vrt is damaged") and str(error).endswith("): make it again.")


def test_what_a_worker_process_raised_is_said_without_its_traceback() -> None:
    said = (
        "Caught DataError in DataLoader worker process 0.\nTraceback:\n\ndeflect_hf.errors.DataError: a.tif is cut off."
    )
    assert str(DataError(said)) == "a.tif is cut off."


def test_a_full_disk_that_names_no_file_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), user_errors([]), open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert "No space left on device: what was being written is not whole. Make room" in capsys.readouterr().err


def test_a_path_that_is_too_long_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), user_errors([]):
        raise OSError(36, "File name too long", "x" * 5_000_000)
    assert len(capsys.readouterr().err) < LONGEST_MESSAGE + 100

"""Lists for many users: folders of histories and of lists, and workers on Ray."""

import functools
import json

import polars as pl
import pytest

from tests.support.clusters import two_nodes
from tssr_jax.errors import UserError
from tssr_jax.recommending import output
from tssr_jax.recommending.recommend import Request, run_recommend

HISTORIES = [[f"i{1 + (7 * user + k) % 11}" for k in range(user % 4)] for user in range(11)]


@pytest.fixture(autouse=True)
def fixture_small_parts(monkeypatch):
    monkeypatch.setattr(output, "_OF_A_FILE", 2)
    monkeypatch.setattr(output, "_OF_A_FOLDER", 3)


@pytest.fixture(name="histories")
def fixture_histories(tmp_path):
    """A folder of two files."""
    folder = tmp_path / "histories"
    folder.mkdir()
    lines = [json.dumps({"user": f"u{i}", "items": own}) for i, own in enumerate(HISTORIES)]
    (folder / "b.jsonl").write_text("\n".join(lines[4:]) + "\n")
    (folder / "a.jsonl").write_text("\n".join(lines[:4]) + "\n")
    (folder / "_SUCCESS").write_text("")
    return folder


def users_of(path):
    return [json.loads(line)["user"] for line in path.read_text().splitlines()]


def test_a_folder_of_histories_is_read_in_the_order_of_names(workdir, histories, tmp_path, capsys):
    run_recommend(workdir, Request(histories, tmp_path / "lists.jsonl", top_k=3, batch_size=1))
    assert users_of(tmp_path / "lists.jsonl") == [f"u{i}" for i in range(11)]
    assert "histories │ 11" in " ".join(capsys.readouterr().out.split())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="has no file whose name ends in"):
        run_recommend(workdir, Request(empty, tmp_path / "lists.jsonl"))


@pytest.mark.parametrize("ending", ["", ".csv", ".parquet"])
def test_a_folder_of_lists_holds_parts_and_goes_on(workdir, histories, tmp_path, ending, capsys):
    whole = tmp_path / f"whole{ending or '.jsonl'}"
    run_recommend(workdir, Request(histories, whole, top_k=3, batch_size=1))
    folder = tmp_path / f"lists{ending}"
    request = Request(histories, f"{folder}/", top_k=3, batch_size=1)
    run_recommend(workdir, request)
    parts = sorted(folder.glob("part-*"))
    assert [p.name for p in parts] == [f"part-{i:06}{ending or '.jsonl'}" for i in range(4)]
    if ending == ".parquet":
        assert pl.read_parquet(parts).equals(pl.read_parquet(whole))
    else:
        lines = [part.read_bytes().splitlines(keepends=True) for part in parts]
        skip = int(ending == ".csv")  # the names of columns
        joined = lines[0][:skip] + [line for own in lines for line in own[skip:]]
        assert b"".join(joined) == whole.read_bytes()

    before = parts[1].read_bytes()
    (folder / ".part-000001.part-dead").write_text("a worker was killed here")
    (folder / "_SUCCESS").unlink()
    parts[1].unlink()
    parts[0].write_text("is not written again")
    capsys.readouterr()
    run_recommend(workdir, request)
    assert parts[1].read_bytes() == before and parts[0].read_text() == "is not written again"
    assert (folder / "_SUCCESS").exists() and not list(folder.glob(".*"))
    told = " ".join(capsys.readouterr().out.split())
    assert "parts that were there before │ 8" in told and "histories │ 3" in told
    with pytest.raises(UserError, match=r"lists of another request \(top_k was 3, not 4"):
        run_recommend(workdir, request._replace(top_k=4))


def test_a_folder_is_refused_if_it_holds_something_else_and_left_if_nothing_comes(
    workdir, histories, tmp_path
):
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    with pytest.raises(UserError, match="the folder holds other files"):
        run_recommend(workdir, Request(histories, f"{folder}/"))
    (histories / "a.jsonl").write_text("broken")
    with pytest.raises(UserError, match="line 1 is no history"):
        run_recommend(workdir, Request(histories, f"{tmp_path}/new/"))
    assert not (tmp_path / "new").exists()


def test_the_input_is_never_written_over(workdir, histories, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "one.jsonl"
    file.write_text('{"items": ["i1"]}\n')
    with pytest.raises(UserError, match=r"--output=~/one\.jsonl is --input"):
        run_recommend(workdir, Request(file, "~/one.jsonl"))
    with pytest.raises(UserError, match="or lies inside of it"):
        run_recommend(workdir, Request(histories, histories / "lists.csv"))
    with pytest.raises(UserError, match=r"is a file\. Name another folder"):
        run_recommend(workdir, Request(histories, f"{file}/"))
    assert file.read_text() == '{"items": ["i1"]}\n' and len(list(histories.iterdir())) == 3


def test_users_of_several_files(workdir, tmp_path):
    """A user with rows in two files comes again; users without an id are named by file and line."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.csv").write_text("user,item\nu1,i1\nu2,i2\n")
    (folder / "b.csv").write_text("user,item\nu1,i3\n")
    with pytest.raises(UserError, match=r"b\.csv, line 2: user 'u1' comes again"):
        run_recommend(workdir, Request(folder, tmp_path / "lists.jsonl"))
    for path in folder.iterdir():
        path.unlink()
    for name in "ab":
        (folder / f"{name}.jsonl").write_text('{"items": ["i1"]}\n')
    run_recommend(workdir, Request(folder, tmp_path / "lists.jsonl", top_k=2))
    assert users_of(tmp_path / "lists.jsonl") == ["a.jsonl:1", "b.jsonl:1"]


def test_lists_on_ray_are_those_of_one_machine(workdir, histories, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    (tmp_path / "never").write_text("i2\nnothing\n")
    request = functools.partial(Request, histories, top_k=3, batch_size=1, never=tmp_path / "never")
    with two_nodes() as place:
        for name in ("lists.csv", "folder/"):
            run_recommend(workdir, request(f"{tmp_path}/one-{name}"))
            run_recommend(workdir, request(f"{tmp_path}/two-{name}", place=place))
            one, two = (tmp_path / f"{which}-{name}" for which in ("one", "two"))
            if name == "folder/":
                files = sorted(path.name for path in one.iterdir())
                assert sorted(path.name for path in two.iterdir()) == files
            else:
                files = [""]
            for file in files:
                assert (two / file).read_bytes() == (one / file).read_bytes(), (name, file)
        (histories / "b.jsonl").write_text('{"items": ["i1"]}\n' * 5 + "broken\n")
        with pytest.raises(UserError, match=r"b.jsonl, line 6 is no history"):
            run_recommend(workdir, request(f"{tmp_path}/bad.jsonl", place=place))
    assert not (tmp_path / "bad.jsonl").exists() and not list(tmp_path.glob(".*"))

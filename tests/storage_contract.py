"""What every storage guarantees: a test class inherits it and has a fixture `files`."""

from datetime import UTC, datetime, timedelta

import pytest

from e5spark.errors import OptionError, TransientError
from e5spark.tables.storage.protocol import Storage


class StorageContract:
    def test_what_was_put_is_read(self, files: Storage) -> None:
        content = bytes(range(256)) * 300
        files.put("a/b/c.json", content)
        assert files.read("a/b/c.json") == content

    def test_an_empty_file_is_no_missing_file(self, files: Storage) -> None:
        files.put("empty", b"")
        assert files.read("empty") == b""
        assert files.read("nothing") is None
        assert files.read("no/such/directory") is None

    def test_put_replaces(self, files: Storage) -> None:
        files.put("a.json", b"a longer first version")
        files.put("a.json", b"second")
        assert files.read("a.json") == b"second"

    def test_create_never_replaces(self, files: Storage) -> None:
        assert files.create("lock/1.json", b"first")
        assert not files.create("lock/1.json", b"second")
        assert files.read("lock/1.json") == b"first"

    def test_a_deleted_file_can_be_created_again(self, files: Storage) -> None:
        files.create("a.json", b"first")
        files.delete("a.json")
        assert files.create("a.json", b"second")

    def test_list_names_files_and_directories_and_nothing_temporary(self, files: Storage) -> None:
        files.put("d/b.json", b"2")
        files.put("d/a b.json", b"1")
        files.create("d/c=1/x.json", b"3")
        files.create("d/b.json", b"4")
        assert files.list("d") == ["a b.json", "b.json", "c=1"]
        assert files.list("") == ["d"]

    def test_list_of_no_directory_is_empty(self, files: Storage) -> None:
        assert files.list("") == []
        assert files.list("nothing") == []

    def test_modified_is_when_a_file_was_written(self, files: Storage) -> None:
        files.put("a/b.json", b"first")
        files.put("a/b.json", b"second")
        modified = files.modified("a/b.json")
        assert modified
        assert abs(datetime.now(UTC) - modified) < timedelta(hours=1)
        assert files.modified("a/c.json") is None
        assert files.modified("nothing/c.json") is None

    def test_rename_moves_into_new_directories(self, files: Storage) -> None:
        files.put("staging/part-0", b"vectors")
        files.rename("staging/part-0", "final/deep/part-0")
        assert files.read("final/deep/part-0") == b"vectors"
        assert files.read("staging/part-0") is None

    def test_rename_can_be_repeated(self, files: Storage) -> None:
        files.put("staging/part-0", b"vectors")
        files.rename("staging/part-0", "part-0")
        files.rename("staging/part-0", "part-0")
        assert files.read("part-0") == b"vectors"

    def test_rename_ends_what_a_killed_rename_left_on_both_sides(self, files: Storage) -> None:
        files.put("staging/part-0", b"vectors")
        files.put("part-0", b"vectors")
        files.rename("staging/part-0", "part-0")
        assert files.read("part-0") == b"vectors"
        assert files.read("staging/part-0") is None

    def test_rename_of_nothing_to_nothing_fails(self, files: Storage) -> None:
        with pytest.raises(TransientError, match="neither exists"):
            files.rename("staging/part-0", "part-0")

    def test_delete_takes_a_directory_with_all_in_it(self, files: Storage) -> None:
        files.put("d/e/f.json", b"1")
        files.put("d/g.json", b"2")
        files.delete("d")
        assert files.list("") == []
        assert files.read("d/e/f.json") is None

    def test_delete_can_be_repeated(self, files: Storage) -> None:
        files.put("a.json", b"1")
        files.delete("a.json")
        files.delete("a.json")
        assert files.list("") == []

    @pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../../b", "a//b", "a/", "."])
    def test_no_name_leads_out_of_the_root_or_to_it(self, files: Storage, name: str) -> None:
        files.put("a.json", b"1")
        with pytest.raises(OptionError):
            files.delete(name)
        with pytest.raises(OptionError):
            files.put(name, b"")
        assert files.list("") == ["a.json"]

    def test_only_an_empty_root_is_removed(self, files: Storage) -> None:
        files.remove_empty()  # there is none
        files.put("a.json", b"a")
        files.remove_empty()
        assert files.read("a.json") == b"a"
        files.delete("a.json")
        files.remove_empty()
        files.remove_empty()
        assert files.list("") == []

"""Names of classes, which come from folders and files of anybody's."""

import pytest

from metala_vision.data.base import check_names
from metala_vision.errors import InputError


@pytest.mark.parametrize("name", ["", "two\nlines", "two\u2028lines", "bell\a", "caf\udce9", 3, None])
def test_names_that_no_table_could_hold(name):
    with pytest.raises(InputError, match="is no text of one line"):
        check_names(["cat", name])


def test_names_in_any_script():
    """Catches letters that Python does not call printable: joiners of Persian and emoji, spaces that do not break."""
    check_names(["cat", "می\u200cخواهم", "hot\xa0dog", "全角\u3000空白", "👩\u200d🌾"])

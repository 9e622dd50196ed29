"""beartype as the tests use it: an int is allowed where a float is asked, as type checkers do."""

from beartype import BeartypeConf
from beartype import beartype as _beartype

beartype = _beartype(conf=BeartypeConf(is_pep484_tower=True))

"""Airflow's configuration, read in the same way in all versions of Airflow, with errors that name the option."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from math import inf
from typing import Any

from airflow.exceptions import AirflowConfigException, AirflowException

from celeriac.airflow.option_table import DEFAULTS
from celeriac.errors import InvalidConfig

TRUE = ("t", "true", "1")
FALSE = ("f", "false", "0")


def airflow_errors() -> tuple[type[Exception], ...]:
    """Return the classes of Airflow's own errors of the configuration: since 3.2, core and task SDK each have one."""
    try:
        from airflow.sdk.exceptions import AirflowConfigException as SdkConfigException
    except ImportError:  # 3.1
        return AirflowConfigException, AirflowException
    return AirflowConfigException, SdkConfigException, AirflowException


class InvalidAirflowConfig(InvalidConfig, *airflow_errors()):  # type: ignore[misc]
    """One option of Airflow's configuration is wrong. The message names it and says what to set. It shows no secret.

    What catches Airflow's own errors of the configuration catches this one, too.
    """


class Options:
    """An executor's configuration (`ExecutorConf`), or Airflow's whole configuration.

    The methods that parse a value raise `InvalidAirflowConfig`. The defaults are in `option_table`.
    """

    def __init__(self, conf: Any) -> None:
        load_providers_configuration()
        self._conf = conf
        self.team_name: str | None = getattr(conf, "team_name", None)

    def get(self, section: str, key: str) -> str | None:
        """Return the configured value; None if the option is unset, even if `option_table` has a default."""
        value = self._conf.get(section, key, fallback=None)
        return None if value is None else str(value).strip()  # the output of a _CMD option ends with a newline

    def text(self, section: str, key: str) -> str:
        """Return the value or its default; "" if there is neither."""
        value = self.get(section, key)
        return (DEFAULTS.get((section, key)) or "") if value is None else value

    def boolean(self, section: str, key: str) -> bool:
        value = self.text(section, key)
        word = value.partition("#")[0].strip().lower()
        if word not in (*TRUE, *FALSE):
            raise invalid_option(section, key, f"{value!r} is not a boolean", "set True or False")
        return word in TRUE

    def integer(self, section: str, key: str) -> int:
        number = self._number(section, key, "a whole number")
        if not number.is_integer():
            raise invalid_option(section, key, f"{number!r} is not a whole number", example(section, key))
        return int(number)

    def seconds(self, section: str, key: str) -> float:
        """Return a duration above 0, or the unchecked default. The default of an option without one is infinity."""
        number = self._number(section, key, "a number of seconds")
        if number != default_number(section, key) and not 0 < number < inf:
            raise invalid_option(section, key, f"{number!r} is not a number of seconds above 0", example(section, key))
        return number

    def number(self, section: str, key: str) -> float:
        return self._number(section, key, "a number")

    def json_object(self, section: str, key: str) -> dict[str, Any]:
        return parse_json_object(section, key, self.text(section, key) or "{}")

    def is_changed(self, section: str, key: str, *later_defaults: float) -> bool:
        """Return whether the user has set a number. `later_defaults` are the defaults of later versions of Airflow.

        The default in a file does not count: Airflow itself writes files with all defaults.
        """
        variable = f"AIRFLOW__{section.upper()}__{key.upper()}"
        is_in_environment = any(variable + suffix in os.environ for suffix in ("", "_CMD", "_SECRET"))
        return is_in_environment or self.number(section, key) not in (default_number(section, key), *later_defaults)

    def section(self, name: str) -> dict[str, Any]:
        """Return all options of a section. Numbers and booleans are converted, as Airflow does."""
        getsection = getattr(self._conf, "getsection", None)
        if getsection is None and self.team_name is None:  # 3.1's ExecutorConf has no such method
            from airflow.configuration import conf

            getsection = conf.getsection
        options = None if getsection is None else getsection(name)
        return self._section_from_environment(name) if options is None else dict(options)

    def _section_from_environment(self, section: str) -> dict[str, Any]:
        """Return the options of environment variables: Airflow 3.2 ignores them if no file has the section."""
        team = f"{self.team_name.upper()}___" if self.team_name else ""
        prefix = f"AIRFLOW__{team}{section.upper()}__"
        names = [name.removeprefix(prefix) for name in os.environ if name.startswith(prefix)]
        keys = {name.removesuffix("_CMD").removesuffix("_SECRET").lower() for name in names}
        return {key: parse_value(self.text(section, key)) for key in sorted(keys)}

    def _number(self, section: str, key: str, kind: str) -> float:
        value = self.get(section, key)
        try:
            return default_number(section, key) if value is None else float(value)
        except ValueError:
            raise invalid_option(section, key, f"{value!r} is not {kind}", example(section, key)) from None


def default_number(section: str, key: str) -> float:
    default = DEFAULTS[section, key]
    return inf if default is None else float(default)


def example(section: str, key: str) -> str:
    return f"set for example {DEFAULTS[section, key] or '1.0'}"


def load_providers_configuration() -> None:
    """Load the options that only providers describe: otherwise they have no default, no _CMD and no _SECRET."""
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded

    providers_configuration_loaded(lambda: None)()


def parse_value(text: str) -> Any:
    """Return a number or a boolean if the text is one, else the text."""
    for number_type in (int, float):
        with suppress(ValueError):
            return number_type(text)
    return {"t": True, "true": True, "f": False, "false": False}.get(text.lower(), text)


def parse_json_object(section: str, key: str, value: Any) -> dict[str, Any]:
    """Return a JSON object. Otherwise raise `InvalidAirflowConfig`, without the value: it may hold passwords."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise invalid_option(section, key, "is not a JSON object", 'set for example {"name": "value"}')
    return parsed


def invalid_option(section: str, key: str, problem: str, remedy: str) -> InvalidAirflowConfig:
    return InvalidAirflowConfig(f"[{section}] {key}", problem, remedy)

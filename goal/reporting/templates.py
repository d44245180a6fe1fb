"""Pages from the templates of the package; whatever comes from data is escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(name: str, /, **values: Any) -> str:
    """The template goal/assets/<name> with these values; every text is escaped unless it is Markup."""
    environment = Environment(
        loader=PackageLoader("goal", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)

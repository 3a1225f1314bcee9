"""Parameters made whole: the family's own model of a recipe and its changes, and the form that Prefect shows of it."""

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from data.checklist import NAMES
from data.parameters import Parameters
from pipelines.parameters import AUTO, PARAMS, choose_recipe, flatten, merge, recipes
from tasks.families import FAMILIES


def configuration(family: str, dataset: str, recipe: str, changes: dict[str, Any]) -> Parameters:
    """The complete parameters of one run.

    Raises ValueError, one line for each fault, for an unknown recipe, an unknown key, a value out of its range, or a
    change that has no effect beside the others.
    """
    if "dataset" in changes:
        raise ValueError(
            "dataset is no parameter to change: name it by --dataset (in Prefect's form, the first field)"
        )
    name = choose_recipe(family, dataset, recipe)
    model = FAMILIES[family].config
    values = {**recipes(family)[name], "dataset": dataset}
    # the recipe's own faults, told apart from the changes'
    before = flatten(model.parse(values, f"{PARAMS.name}: {family}.{name}").model_dump())
    config = model.parse(merge(values, changes), "")
    after = flatten(config.model_dump())
    faults = [
        f"{key} (={after[key]}) would change nothing, since {reason}: leave it out"
        for key, reason in FAMILIES[family].unread(config).items()
        if after[key] != before[key]
    ]
    if faults:
        raise ValueError("\n".join(faults))
    return config


class RecipeForm:
    """Makes a text parameter of a flow a drop-down of the family's recipes in Prefect's form."""

    def __init__(self, family: str) -> None:
        self.family = family

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": [AUTO, *recipes(self.family)]}


class AcceptForm:
    """Makes a list parameter of a flow a choice among the names of checks in Prefect's form."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "array", "uniqueItems": True, "items": {"type": "string", "enum": sorted(NAMES)}}


class ChangesForm:
    """Makes a dict parameter of a flow a form with the family's parameters, none of them required.

    The form has the names, types, choices, limits and help of the family's own model, so it cannot differ from it.
    """

    def __init__(self, family: str) -> None:
        self.family = family

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = FAMILIES[self.family].config.model_json_schema()
        form = optional_form(schema, schema.get("$defs", {}))
        form["properties"].pop("dataset")
        return form


class SectionForm:
    """Makes a dict parameter of a flow a form of a section of params.yaml, none of its fields required."""

    def __init__(self, model: type[Parameters]) -> None:
        self.model = model

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = self.model.model_json_schema()
        return optional_form(schema, schema.get("$defs", {}))


def optional_form(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with its references written out and nothing required."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    form = {key: value for key, value in schema.items() if key not in ("$defs", "required")}
    # a switch is never empty: untouched, it would turn the recipe's value off
    if form.get("type") == "boolean":
        form.pop("type")
        form["enum"] = [True, False]
    if "properties" in form:
        form["properties"] = {
            name: {**optional_form(part, definitions), "title": name}
            for name, part in form["properties"].items()
        }
    if isinstance(form.get("additionalProperties"), dict):
        form["additionalProperties"] = optional_form(form["additionalProperties"], definitions)
    if "items" in form:
        form["items"] = optional_form(form["items"], definitions)
    return form

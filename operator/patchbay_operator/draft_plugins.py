"""
The plugins of a draft: which Plugins take part, as what, and where they are found.

Not here: their objects (`objects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from patchbay_gateway.kernel import config as model
from patchbay_operator.objects.naming import child_name
from patchbay_operator.verdicts import CONFIG_NOT_FOUND, SECRET_NOT_FOUND, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from patchbay_operator.api.plugin import PluginSpec
    from patchbay_operator.draft import Gathered
    from patchbay_operator.installation import Installation
    from patchbay_operator.verdicts import Verdicts


class Plugins:
    """
    One draft's.

    Args:
        gathered: What there is.
        installation: Names.
        verdicts: Told of each Plugin.
    """

    def __init__(self, gathered: Gathered, installation: Installation, verdicts: Verdicts) -> None:
        self._in = gathered
        self._installation = installation
        self._verdicts = verdicts

    def drafted(self) -> Iterable[model.Plugin]:
        """Return those that the configuration gets, besides the values' own."""
        taken = {p.id: "the chart's values" for p in self._in.base.plugins}
        for resource in sorted(self._in.plugins, key=lambda r: r.age):
            if resource.spec is None:
                self._verdicts.judge(resource)
                continue
            id_ = resource.spec.id or resource.name
            if id_ in taken:
                text = (
                    f"the plugin {id_!r} is declared by {taken[id_]} already; give this another id"
                )
                self._verdicts.judge(resource, conflict=text)
                continue
            # Its id is taken whatever becomes of it: a younger one must not serve in its place for a moment.
            taken[id_] = f"Plugin {resource.name}"
            config, missing = self._config(resource.name, resource.spec)
            if missing:
                self._verdicts.judge(
                    resource, unresolved=(CONFIG_NOT_FOUND, missing), included=False
                )
                continue
            try:
                built = self._plugin(resource.name, resource.spec, id_, config)
            except ValidationError as error:
                self._verdicts.judge(resource, invalid=sentence(error))
                continue
            absent = self._in.missing.get(resource.name)
            unresolved = _missing_objects(absent) if absent else None
            replaces = id_ in model.BUILTIN_PLUGINS and resource.spec.image is not None
            if replaces and resource.name not in self._in.serving:
                # What serves now goes on until there is somebody to take its place.
                text = f"it takes the place of the built-in {id_} when its first pod is ready"
                self._verdicts.judge(resource, unresolved=unresolved, waits=text)
                continue
            self._verdicts.judge(resource, unresolved=unresolved)
            yield built

    def _config(self, name: str, spec: PluginSpec) -> tuple[dict[str, Any], str]:
        """Return the plugin's own configuration, or why there is none."""
        if spec.config_from is None:
            return dict(spec.config or {}), ""
        text = self._in.configs.get(name)
        if text is None:
            return {}, _missing_config(spec)
        try:
            loaded = yaml.safe_load(text)
        except yaml.YAMLError as error:
            return {}, f"the configuration is no YAML: {str(error).splitlines()[0]}"
        if loaded is not None and not isinstance(loaded, dict):
            return {}, "the configuration is no mapping of keys"
        return loaded or {}, ""

    def _plugin(
        self, name: str, spec: PluginSpec, id_: str, config: dict[str, Any]
    ) -> model.Plugin:
        values = spec.model_dump(
            include=set(model.Plugin.model_fields) - {"id", "address", "config"}, mode="json"
        )
        address = spec.address or self.address(name, spec.port)
        return model.Plugin.model_validate(
            {**values, "id": id_, "address": address, "config": config}
        )

    def address(self, plugin: str, port: int) -> str:
        """Return where a Plugin's pods are found; the dot at the end spares a search path's questions."""
        at = self._installation
        return f"{child_name(plugin)}.{at.namespace}.svc.{at.cluster_domain}.:{port}"


def _missing_objects(names: Sequence[str]) -> tuple[str, str]:
    reason = SECRET_NOT_FOUND if names[0].startswith("Secret/") else CONFIG_NOT_FOUND
    text = " and ".join(name.replace("/", " ") for name in names)
    return reason, f"there is no {text}, which its pods read; create it and they start"


def _missing_config(spec: PluginSpec) -> str:
    assert spec.config_from is not None
    ref = spec.config_from.secret_ref or spec.config_from.config_map_ref
    assert ref is not None
    kind = "Secret" if spec.config_from.secret_ref is not None else "ConfigMap"
    return f"there is no key {ref.key!r} in a {kind} {ref.name}; create it, or correct configFrom"

"""ComfyUI loads the pack from here. Nothing else belongs in this file: a NODE_CLASS_MAPPINGS would switch the entry point off."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # type: ignore[no-untyped-def]
    """The pack's extension; imported late, because tests import this file without ComfyUI."""
    from .nodes.extension import SafeDitExtension

    return SafeDitExtension()

"""Stand-ins for what the library runs among: models, a host, the Lora extension, sd-webui-controlnet."""

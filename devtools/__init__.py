"""Set-up, commands and the real ComfyUI server of the project; standard library only, but for following a prompt."""

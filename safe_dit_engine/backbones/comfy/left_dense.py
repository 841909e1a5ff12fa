"""Diffusion transformers for pictures and videos that are known and computed in full, each with its reason: the end of a sentence."""

from __future__ import annotations

_OWN_CACHE = "it keeps keys and values itself, from one part of its output to the next"
_PIXELS = "behind its blocks a decoder works on all pixels at full length"
_UNTRIED = "nobody has described its blocks yet"

LEFT_DENSE = {
    "CausalWanModel": _OWN_CACHE,
    "HiDreamO1Transformer": _OWN_CACHE,
    "VaceWanModel": "blocks of its own follow the control video and add to every row in between",
    "CameraWanModel": "its camera path has not been tried with rows left out",
    "WanModel_S2V": "audio is added to rows by their place between blocks",
    "HumoWanModel": "audio is looked at frame by frame, by the rows' place",
    "AnimateWanModel": "the face is added to rows by their frame between blocks",
    "SCAILWanModel": "rows of references and poses stand around those of the video",
    "SCAIL2WanModel": "rows of references and poses stand around those of the video",
    "WanDancerModel": "music is added to rows by their frame between blocks",
    "GeneralDIT": "its rows stand in the first dimension, before the batch",
    "HunYuanDiT": "the position table of its blocks is a pair of tables",
    "ChromaRadiance": _PIXELS,
    "NextDiTPixelSpace": _PIXELS,
    "PixDiT_T2I": _PIXELS,
    "PidNet": _PIXELS,
    "BooguTransformer2DModel": _UNTRIED,
    "JoyImageTransformer3DModel": _UNTRIED,
    "MiniMaxH3Model": _UNTRIED,
    "LTXVModel": _UNTRIED,
    "LTXAVModel": _UNTRIED,
    "AsymmDiTJoint": _UNTRIED,
    "CogVideoXTransformer3DModel": _UNTRIED,
    "NaDiT": "it attends within windows of the picture, not over all of it",
}

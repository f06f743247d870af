"""Names of what LIBERO's environments show."""

from __future__ import annotations

CAMERAS = {"base": "agentview", "wrist": "robot0_eye_in_hand"}  # role -> name in LIBERO's scenes
CAMERA_SIZE = 256  # pixels; stock renders at this size, and rendering smaller changes pixels
CONTROL_HZ = 20
QPOS, SITE_ALPHA = "qpos", "site_alpha"  # of a pose to draw; the rest are fields of the model
PROPRIO = ("eef_pos", "eef_axis_angle", "eef_quat", "gripper_qpos", "joint_pos")  # as stock's observables sample them
# All that the scenes have, for videos.
SCENE_CAMERAS = (
    *(*CAMERAS.values(), "robot0_robotview"),
    *("frontview", "sideview", "birdview", "galleryview", "paperview"),
)

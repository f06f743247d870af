"""Pictures that are read from OpenGL while the next ones are rendered.

`mjr_readPixels` waits until a picture is rendered. Here it is copied to a buffer of the GPU's in turn, so that many
pictures can be submitted before the first is read.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from wpray.types import ImageArray


class Readback:
    """Picture that was rendered last into a context's offscreen buffer, on its way."""

    def __init__(self, context: Any, height: int, width: int) -> None:
        """Submit the copy; `context` is MuJoCo's, and its GL context is current."""
        from OpenGL import GL  # after its environment variable is set

        self._gl, self._shape = GL, (height, width, 3)
        source = context.offFBO
        if context.offSamples:
            GL.glBindFramebuffer(GL.GL_READ_FRAMEBUFFER, context.offFBO)
            GL.glBindFramebuffer(GL.GL_DRAW_FRAMEBUFFER, context.offFBO_r)
            area = (0, 0, width, height)
            GL.glBlitFramebuffer(*area, *area, GL.GL_COLOR_BUFFER_BIT, GL.GL_NEAREST)
            source = context.offFBO_r
        GL.glBindFramebuffer(GL.GL_READ_FRAMEBUFFER, source)
        GL.glReadBuffer(GL.GL_COLOR_ATTACHMENT0)
        GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 1)
        self._buffer = GL.glGenBuffers(1)
        GL.glBindBuffer(GL.GL_PIXEL_PACK_BUFFER, self._buffer)
        GL.glBufferData(GL.GL_PIXEL_PACK_BUFFER, height * width * 3, None, GL.GL_STREAM_READ)
        GL.glReadPixels(0, 0, width, height, GL.GL_RGB, GL.GL_UNSIGNED_BYTE, ctypes.c_void_p(0))
        GL.glBindBuffer(GL.GL_PIXEL_PACK_BUFFER, 0)

    def picture(self) -> ImageArray:
        """Wait for the picture and return it, (height, width, 3), rows from the bottom. Call it once."""
        gl, picture = self._gl, np.empty(self._shape, dtype=np.uint8)
        gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, self._buffer)
        gl.glGetBufferSubData(gl.GL_PIXEL_PACK_BUFFER, 0, picture.nbytes, picture)
        gl.glBindBuffer(gl.GL_PIXEL_PACK_BUFFER, 0)
        gl.glDeleteBuffers(1, [self._buffer])
        return picture

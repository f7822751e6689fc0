"""Flushes a checkpoint to the disk before it gets its final name."""

from pathlib import Path

from orbax.checkpoint.path import atomicity

from flaxmnist.runtime import durable


class SyncedPath(atomicity.AtomicRenameTemporaryPath):  # type: ignore[misc]
    """A checkpoint's directory, which is on the disk when it gets its final name.

    Orbax writes its JSON files and renames without flushing either, and deletes older
    checkpoints right after the rename: a power failure could lose both.
    """

    async def finalize(self) -> None:
        """Writes the last files, flushes all of them, renames, flushes the name."""
        final, suffix = self.get_final(), atomicity.TMP_DIR_SUFFIX
        if suffix in final.parent.name:  # A part, which is flushed with the whole.
            await super().finalize()
            return
        # Still a temporary name: Orbax removes it if the process dies here.
        self._final_path = self.get().with_name(f"{final.name}.written{suffix}")
        await super().finalize()
        written, self._final_path = self._final_path, final
        durable.sync_tree(Path(written))
        durable.replace(Path(written), Path(final))

//! The spool's file, given out in blocks.
//!
//! `spool` calls it from any thread. Always true: the file has no name, so the system takes it back whatever ends the
//! process; a block belongs to one stream at a time and is emptied before it is given out again.
//! Deliberately not here: which stream has which block, and limits.

use super::lock;
use crate::limits::BLOCK_BYTES;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

/// Number of a block; it stands at that many times [`BLOCK_BYTES`] in the file.
pub(super) type Block = u32;

/// An unnamed file with its free blocks.
#[derive(Debug)]
pub(super) struct BlockFile {
    file: File,
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    /// Blocks that were given back.
    free: Vec<Block>,
    /// The first block that was never given out.
    next: Block,
}

impl BlockFile {
    /// Makes the file in `folder`.
    pub(super) fn create(folder: &Path) -> io::Result<BlockFile> {
        Ok(BlockFile { file: tempfile::tempfile_in(folder)?, room: Mutex::default() })
    }

    /// A block for the caller alone.
    pub(super) fn take(&self) -> io::Result<Block> {
        let mut room = lock(&self.room);
        if let Some(block) = room.free.pop() {
            return Ok(block);
        }
        let block = room.next;
        room.next = block.checked_add(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(block)
    }

    /// Gives blocks back, their space on the disk too where the file system can do that.
    pub(super) fn give_back(&self, mut blocks: Vec<Block>) {
        if blocks.is_empty() {
            return;
        }
        blocks.sort_unstable();
        // Emptied before they are free: the other way round we could empty a block that has a new owner.
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            self.punch(run[0], run.len());
        }
        lock(&self.room).free.append(&mut blocks);
    }

    /// Bytes into a block, from `within` on; they must fit.
    pub(super) fn write(&self, block: Block, within: usize, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(within + bytes.len() <= BLOCK_BYTES);
        self.file.write_all_at(bytes, position(block) + within as u64)
    }

    /// Bytes out of a block, from `within` on; they must have been written.
    pub(super) fn read(&self, block: Block, within: usize, bytes: &mut [u8]) -> io::Result<()> {
        debug_assert!(within + bytes.len() <= BLOCK_BYTES);
        self.file.read_exact_at(bytes, position(block) + within as u64)
    }

    /// From now on every write fails as on a full disk.
    #[cfg(test)]
    pub(super) fn break_writes(&mut self) {
        self.file = File::options().read(true).write(true).open("/dev/full").expect("the device of full disks");
    }

    #[cfg(target_os = "linux")]
    fn punch(&self, first: Block, count: usize) {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Some file systems cannot. Nothing is lost: the block is used again, only its space is not free meanwhile.
        let _ = fallocate(&self.file, flags, position(first), (count * BLOCK_BYTES) as u64);
    }

    #[cfg(not(target_os = "linux"))]
    fn punch(&self, _first: Block, _count: usize) {}
}

fn position(block: Block) -> u64 {
    u64::from(block) * BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    // We want to know that the space of dropped output is given back, and that a block is used again: we look at the
    // sectors that the file occupies.
    #[test]
    fn blocks_that_are_given_back_take_no_disk_and_are_used_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = BlockFile::create(folder.path()).expect("a file");
        let blocks: Vec<Block> = (0..8).map(|_| file.take().expect("room")).collect();
        for block in &blocks {
            file.write(*block, 0, &[1; BLOCK_BYTES]).expect("written");
        }
        file.file.sync_all().expect("synced");
        let before = file.file.metadata().expect("metadata").blocks();
        assert!(before * 512 >= 8 * BLOCK_BYTES as u64, "{before} sectors");
        file.give_back(vec![5, 2, 3, 4]);
        let after = file.file.metadata().expect("metadata").blocks();
        assert!(before - after >= 4 * BLOCK_BYTES as u64 / 512, "{before} sectors, then {after}");

        let again = file.take().expect("room");
        assert!((2..=5).contains(&again));
        let mut bytes = [9; 16];
        file.read(again, 0, &mut bytes).expect("read");
        assert_eq!(bytes, [0; 16], "nothing of its last owner is left");
        file.read(6, 0, &mut bytes).expect("read");
        assert_eq!(bytes, [1; 16], "the others are untouched");
    }
}

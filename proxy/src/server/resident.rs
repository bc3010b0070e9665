//! Memory that only the start needed.
//!
//! Called by the control thread once everything serves. Reading configuration touches most of the program's code; what
//! serving needs of it comes back out of the page cache when it is used.

use std::{ffi::c_void, ops::Range, os::raw::c_int, ptr};

/// Unmaps the pages of the program's code and constants.
pub fn give_back() {
    // SAFETY: `visit` has the signature that is asked for and keeps nothing of what it is given.
    unsafe { libc::dl_iterate_phdr(Some(visit), ptr::null_mut()) };
}

/// Called with the program itself first; returns 1 so that it is not called again.
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the loader gives a valid description, and as many program headers as it says.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 1;
        }
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    // SAFETY: only asks for a number.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return 1 };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        let Range { start, end } = pages(base + header.p_vaddr as usize, header.p_memsz as usize, page);
        // SAFETY: a segment that cannot be written is mapped from the program's file as it is there; a page of it that
        // is dropped is read from there again when it is touched.
        unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) };
    }
    1
}

/// The whole pages that hold `size` bytes at `start`.
fn pages(start: usize, size: usize, page: usize) -> Range<usize> {
    let first = start - start % page;
    first..(start + size).next_multiple_of(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages() {
        assert_eq!(pages(0x1010, 0x10, 0x1000), 0x1000..0x2000);
        assert_eq!(pages(0x1ff0, 0x20, 0x1000), 0x1000..0x3000);
    }

    #[test]
    fn the_program_goes_on() {
        static WORDS: [&str; 2] = ["still", "here"];
        give_back();
        assert_eq!(WORDS.join(" "), "still here");
    }
}

//! From the PVH entry point (32-bit protected mode, no paging) to [`crate::main`] in long mode, with the first 4 GiB mapped as
//! they are. There is no interrupt table, and interrupts stay off: an exception is a triple fault, which ends the machine.

core::arch::global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18              // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32

    .section .bss.tables, "aw", @nobits
    .balign 4096
pml4:   .skip 4096
pdpt:   .skip 4096
pd:     .skip 4 * 4096
stack:  .skip 64 * 1024
stack_end:

    .section .rodata.gdt, "a"
    .balign 8
gdt:    .quad 0
        .quad 0x00af9a000000ffff // 64-bit code
        .quad 0x00cf92000000ffff // data
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .long gdt

    .section .text.start, "ax"
    .code32
    .global start32
start32:
    cli
    mov esp, offset stack_end
    mov edi, ebx                // hvm_start_info
    mov eax, offset pdpt + 3
    mov dword ptr [pml4], eax
    mov eax, offset pd + 3
    xor ecx, ecx
2:  mov dword ptr [pdpt + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jne 2b
    mov eax, 0x83               // present, writable, 2 MiB
    xor ecx, ecx
3:  mov dword ptr [pd + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 3b
    mov eax, 0x620              // PAE, and SSE as compiled code may use it
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080         // EFER
    mov eax, 0x100              // LME
    xor edx, edx
    wrmsr
    mov eax, 0x80000013         // PG, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp 8, offset start64
    .code64
start64:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, edi
    call {main}
4:  hlt
    jmp 4b
"#,
    main = sym crate::main,
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    crate::machine::fail("the guest itself panicked")
}

/// What the compiler calls for copies.
///
/// # Safety
/// As of C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _);
    }
    to
}

/// What the compiler calls for fills.
///
/// # Safety
/// As of C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") value as u8);
    }
    to
}

/// What the compiler calls to compare text.
///
/// # Safety
/// As of C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, bytes: usize) -> i32 {
    for at in 0..bytes {
        // SAFETY: the caller's.
        let (one, other) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}

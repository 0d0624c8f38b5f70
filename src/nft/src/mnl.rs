//! The part of libmnl that libnftnl calls, so that no libmnl is needed to link.
//!
//! libmnl is a thin layer over netlink's message format: a header, attributes
//! of `{len, type, payload}` padded to four bytes, nested attributes, and pages
//! of messages. Every function here keeps libmnl's name, signature, return
//! values and errno; `libnftnl.a` is the only caller.
//!
//! Safety of the whole file: as in C, the caller passes valid headers inside
//! buffers that are large enough (libnftnl is handed buffers of the largest
//! netlink message, see `nftnl::nft_nlmsg_maxsize`).
#![allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::size_of;
use std::ptr;

use libc::{nlattr, nlmsghdr, sockaddr_nl, socklen_t};

/// Netlink aligns everything to four bytes.
const ALIGN: usize = 4;
const ATTR_HEADER: usize = 4;
const MESSAGE_HEADER: usize = 16;
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = !(NESTED | (1 << 14));

const CB_ERROR: c_int = -1;
const CB_STOP: c_int = 0;
const CB_OK: c_int = 1;

type AttrCallback = Option<unsafe extern "C" fn(*const nlattr, *mut c_void) -> c_int>;
type MessageCallback = Option<unsafe extern "C" fn(*const nlmsghdr, *mut c_void) -> c_int>;

const fn align(len: usize) -> usize {
    (len + ALIGN - 1) & !(ALIGN - 1)
}

fn fail(errno: c_int) -> c_int {
    nix::errno::Errno::from_raw(errno).set();
    -1
}

unsafe fn tail(nlh: *const nlmsghdr) -> *mut c_void {
    unsafe { nlh.cast::<u8>().add(align((*nlh).nlmsg_len as usize)) as *mut c_void }
}

// ---- messages ----

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_put_header(buf: *mut c_void) -> *mut nlmsghdr {
    unsafe {
        ptr::write_bytes(buf.cast::<u8>(), 0, MESSAGE_HEADER);
        let nlh = buf.cast::<nlmsghdr>();
        (*nlh).nlmsg_len = MESSAGE_HEADER as u32;
        nlh
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_put_extra_header(nlh: *mut nlmsghdr, size: usize) -> *mut c_void {
    unsafe {
        let at = nlh.cast::<u8>().add((*nlh).nlmsg_len as usize);
        (*nlh).nlmsg_len += align(size) as u32;
        ptr::write_bytes(at, 0, align(size));
        at.cast()
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_get_payload(nlh: *const nlmsghdr) -> *mut c_void {
    unsafe { nlh.cast::<u8>().add(MESSAGE_HEADER) as *mut c_void }
}

// ---- reading attributes ----

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_type(attr: *const nlattr) -> u16 {
    unsafe { (*attr).nla_type & TYPE_MASK }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_payload_len(attr: *const nlattr) -> u16 {
    unsafe { (*attr).nla_len - ATTR_HEADER as u16 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_payload(attr: *const nlattr) -> *mut c_void {
    unsafe { attr.cast::<u8>().add(ATTR_HEADER) as *mut c_void }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_str(attr: *const nlattr) -> *const c_char {
    unsafe { mnl_attr_get_payload(attr).cast() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_u8(attr: *const nlattr) -> u8 {
    unsafe { *mnl_attr_get_payload(attr).cast::<u8>() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_u16(attr: *const nlattr) -> u16 {
    unsafe { mnl_attr_get_payload(attr).cast::<u16>().read_unaligned() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_u32(attr: *const nlattr) -> u32 {
    unsafe { mnl_attr_get_payload(attr).cast::<u32>().read_unaligned() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_get_u64(attr: *const nlattr) -> u64 {
    unsafe { mnl_attr_get_payload(attr).cast::<u64>().read_unaligned() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_ok(attr: *const nlattr, len: c_int) -> bool {
    len >= ATTR_HEADER as c_int
        && unsafe { (*attr).nla_len as usize >= ATTR_HEADER && c_int::from((*attr).nla_len) <= len }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_next(attr: *const nlattr) -> *mut nlattr {
    unsafe { attr.cast::<u8>().add(align((*attr).nla_len as usize)) as *mut nlattr }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_type_valid(attr: *const nlattr, max: u16) -> c_int {
    if unsafe { mnl_attr_get_type(attr) } > max {
        fail(libc::EOPNOTSUPP)
    } else {
        1
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_validate(attr: *const nlattr, kind: c_uint) -> c_int {
    // The order of libmnl's enum mnl_attr_data_type: unspec, u8, u16, u32, u64,
    // string, flag, msecs, nested, nested-compat, nul-string, binary.
    const EXACT: [usize; 12] = [0, 1, 2, 4, 8, 0, 0, 8, 0, 0, 0, 0];
    const STRING: c_uint = 5;
    const FLAG: c_uint = 6;
    const NESTED_TYPE: c_uint = 8;
    const NUL_STRING: c_uint = 10;
    let Some(&exact) = EXACT.get(kind as usize) else {
        return fail(libc::EINVAL);
    };
    let len = unsafe { mnl_attr_get_payload_len(attr) } as usize;
    if len < exact {
        return fail(libc::ERANGE);
    }
    match kind {
        FLAG if len > 0 => return fail(libc::ERANGE),
        STRING | NUL_STRING if len == 0 => return fail(libc::ERANGE),
        NUL_STRING if unsafe { *mnl_attr_get_payload(attr).cast::<u8>().add(len - 1) } != 0 => {
            return fail(libc::EINVAL);
        }
        NESTED_TYPE if len > 0 && len < ATTR_HEADER => return fail(libc::ERANGE),
        _ => {}
    }
    if exact > 0 && len > exact {
        fail(libc::ERANGE)
    } else {
        0
    }
}

unsafe fn each(mut at: *const nlattr, end: *const u8, cb: AttrCallback, data: *mut c_void) -> c_int {
    let mut result = CB_OK;
    while unsafe { mnl_attr_ok(at, end.offset_from(at.cast()) as c_int) } {
        result = match cb {
            Some(cb) => unsafe { cb(at, data) },
            None => CB_OK,
        };
        if result <= CB_STOP {
            return result;
        }
        at = unsafe { mnl_attr_next(at) };
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_parse(
    nlh: *const nlmsghdr,
    offset: c_uint,
    cb: AttrCallback,
    data: *mut c_void,
) -> c_int {
    unsafe {
        let first = nlh.cast::<u8>().add(MESSAGE_HEADER + align(offset as usize));
        each(first.cast(), tail(nlh).cast(), cb, data)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_parse_nested(
    nested: *const nlattr,
    cb: AttrCallback,
    data: *mut c_void,
) -> c_int {
    unsafe {
        let first = mnl_attr_get_payload(nested).cast::<u8>();
        each(
            first.cast(),
            first.add(mnl_attr_get_payload_len(nested) as usize),
            cb,
            data,
        )
    }
}

// ---- writing attributes ----

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_put(nlh: *mut nlmsghdr, kind: u16, len: usize, data: *const c_void) {
    unsafe {
        let attr = tail(nlh).cast::<nlattr>();
        (*attr).nla_type = kind;
        (*attr).nla_len = (ATTR_HEADER + len) as u16;
        let payload = attr.cast::<u8>().add(ATTR_HEADER);
        if len > 0 {
            ptr::copy_nonoverlapping(data.cast::<u8>(), payload, len);
        }
        ptr::write_bytes(payload.add(len), 0, align(len) - len);
        (*nlh).nlmsg_len += align(ATTR_HEADER + len) as u32;
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_put_u8(nlh: *mut nlmsghdr, kind: u16, data: u8) {
    unsafe { mnl_attr_put(nlh, kind, 1, (&raw const data).cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_put_u16(nlh: *mut nlmsghdr, kind: u16, data: u16) {
    unsafe { mnl_attr_put(nlh, kind, 2, (&raw const data).cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_put_u32(nlh: *mut nlmsghdr, kind: u16, data: u32) {
    unsafe { mnl_attr_put(nlh, kind, 4, (&raw const data).cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_put_u64(nlh: *mut nlmsghdr, kind: u16, data: u64) {
    unsafe { mnl_attr_put(nlh, kind, 8, (&raw const data).cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_put_str(nlh: *mut nlmsghdr, kind: u16, data: *const c_char) {
    unsafe { mnl_attr_put(nlh, kind, CStr::from_ptr(data).count_bytes(), data.cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_put_strz(nlh: *mut nlmsghdr, kind: u16, data: *const c_char) {
    unsafe { mnl_attr_put(nlh, kind, CStr::from_ptr(data).count_bytes() + 1, data.cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_nest_start(nlh: *mut nlmsghdr, kind: u16) -> *mut nlattr {
    unsafe {
        let attr = tail(nlh).cast::<nlattr>();
        (*attr).nla_type = NESTED | kind;
        (*nlh).nlmsg_len += ATTR_HEADER as u32;
        attr
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_attr_nest_end(nlh: *mut nlmsghdr, start: *mut nlattr) {
    unsafe { (*start).nla_len = tail(nlh).cast::<u8>().offset_from(start.cast()) as u16 }
}

// ---- pages of messages ----

struct MessageBatch {
    buf: *mut u8,
    limit: usize,
    used: usize,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_batch_start(buf: *mut c_void, limit: usize) -> *mut c_void {
    Box::into_raw(Box::new(MessageBatch {
        buf: buf.cast(),
        limit,
        used: 0,
    }))
    .cast()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_batch_stop(batch: *mut c_void) {
    drop(unsafe { Box::from_raw(batch.cast::<MessageBatch>()) });
}

/// Moves past the message just written; false when it does not fit the page.
#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_batch_next(batch: *mut c_void) -> bool {
    unsafe {
        let batch = &mut *batch.cast::<MessageBatch>();
        let len = (*batch.buf.add(batch.used).cast::<nlmsghdr>()).nlmsg_len as usize;
        if batch.used + len > batch.limit {
            return false;
        }
        batch.used += len;
        true
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_batch_size(batch: *mut c_void) -> usize {
    unsafe { (*batch.cast::<MessageBatch>()).used }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_batch_head(batch: *mut c_void) -> *mut c_void {
    unsafe { (*batch.cast::<MessageBatch>()).buf.cast() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_batch_current(batch: *mut c_void) -> *mut c_void {
    unsafe {
        let batch = &*batch.cast::<MessageBatch>();
        batch.buf.add(batch.used).cast()
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_nlmsg_batch_is_empty(batch: *mut c_void) -> bool {
    unsafe { (*batch.cast::<MessageBatch>()).used == 0 }
}

// ---- sockets (libnftnl's probe for batch support) ----

struct Socket {
    fd: c_int,
    addr: sockaddr_nl,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_socket_open(bus: c_int) -> *mut c_void {
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, bus);
        if fd < 0 {
            return ptr::null_mut();
        }
        Box::into_raw(Box::new(Socket {
            fd,
            addr: std::mem::zeroed(),
        }))
        .cast()
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_socket_bind(socket: *mut c_void, groups: c_uint, pid: i32) -> c_int {
    unsafe {
        let socket = &mut *socket.cast::<Socket>();
        socket.addr.nl_family = libc::AF_NETLINK as u16;
        socket.addr.nl_groups = groups;
        socket.addr.nl_pid = pid as u32;
        let mut len = size_of::<sockaddr_nl>() as socklen_t;
        if libc::bind(socket.fd, (&raw const socket.addr).cast(), len) < 0 {
            return -1;
        }
        libc::getsockname(socket.fd, (&raw mut socket.addr).cast(), &mut len)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_socket_get_portid(socket: *const c_void) -> c_uint {
    unsafe { (*socket.cast::<Socket>()).addr.nl_pid }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_socket_sendto(socket: *const c_void, buf: *const c_void, len: usize) -> isize {
    unsafe {
        let mut kernel: sockaddr_nl = std::mem::zeroed();
        kernel.nl_family = libc::AF_NETLINK as u16;
        let fd = (*socket.cast::<Socket>()).fd;
        let size = size_of::<sockaddr_nl>() as socklen_t;
        libc::sendto(fd, buf, len, 0, (&raw const kernel).cast(), size)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_socket_recvfrom(socket: *const c_void, buf: *mut c_void, len: usize) -> isize {
    unsafe {
        let mut from: sockaddr_nl = std::mem::zeroed();
        let mut iov = libc::iovec {
            iov_base: buf,
            iov_len: len,
        };
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_name = (&raw mut from).cast();
        msg.msg_namelen = size_of::<sockaddr_nl>() as socklen_t;
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        let got = libc::recvmsg((*socket.cast::<Socket>()).fd, &mut msg, 0);
        if got < 0 {
            got
        } else if msg.msg_flags & libc::MSG_TRUNC != 0 {
            fail(libc::ENOSPC) as isize
        } else if msg.msg_namelen as usize != size_of::<sockaddr_nl>() {
            fail(libc::EINVAL) as isize
        } else {
            got
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_socket_close(socket: *mut c_void) -> c_int {
    let socket = unsafe { Box::from_raw(socket.cast::<Socket>()) };
    unsafe { libc::close(socket.fd) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mnl_cb_run(
    buf: *const c_void,
    len: usize,
    seq: c_uint,
    portid: c_uint,
    cb: MessageCallback,
    data: *mut c_void,
) -> c_int {
    let (mut at, mut left, mut result) = (buf.cast::<u8>(), len, CB_OK);
    while left >= MESSAGE_HEADER {
        let nlh = at.cast::<nlmsghdr>();
        let header = unsafe { nlh.read_unaligned() };
        let size = header.nlmsg_len as usize;
        if size < MESSAGE_HEADER || size > left {
            break;
        }
        if header.nlmsg_pid != 0 && portid != 0 && header.nlmsg_pid != portid {
            return fail(libc::ESRCH);
        }
        if header.nlmsg_seq != 0 && seq != 0 && header.nlmsg_seq != seq {
            return fail(libc::EPROTO);
        }
        if header.nlmsg_flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
            return fail(libc::EINTR);
        }
        result = if header.nlmsg_type >= 0x10 {
            cb.map_or(CB_OK, |cb| unsafe { cb(nlh, data) })
        } else if c_int::from(header.nlmsg_type) == libc::NLMSG_ERROR {
            if size < MESSAGE_HEADER + size_of::<libc::nlmsgerr>() {
                return fail(libc::EBADMSG);
            }
            match unsafe { at.add(MESSAGE_HEADER).cast::<c_int>().read_unaligned() } {
                0 => CB_STOP,
                errno => {
                    fail(errno.abs());
                    CB_ERROR
                }
            }
        } else if c_int::from(header.nlmsg_type) == libc::NLMSG_DONE {
            CB_STOP
        } else {
            CB_OK
        };
        if result <= CB_STOP {
            return result;
        }
        let step = align(size).min(left);
        at = unsafe { at.add(step) };
        left -= step;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message buffer, aligned like a header.
    fn buffer() -> Vec<u64> {
        vec![u64::MAX; 64]
    }

    unsafe extern "C" fn collect(attr: *const nlattr, data: *mut c_void) -> c_int {
        let out = data.cast::<Vec<(u16, Vec<u8>)>>();
        unsafe {
            let len = mnl_attr_get_payload_len(attr) as usize;
            let payload = std::slice::from_raw_parts(mnl_attr_get_payload(attr).cast::<u8>(), len);
            (*out).push((mnl_attr_get_type(attr), payload.to_vec()));
            if mnl_attr_get_type(attr) == 99 {
                CB_STOP
            } else {
                CB_OK
            }
        }
    }

    #[test]
    fn attributes_are_written_padded_and_read_back() {
        let mut memory = buffer();
        let mut seen: Vec<(u16, Vec<u8>)> = Vec::new();
        let seen_at: *mut c_void = (&raw mut seen).cast();
        unsafe {
            let nlh = mnl_nlmsg_put_header(memory.as_mut_ptr().cast());
            mnl_nlmsg_put_extra_header(nlh, 4);
            mnl_attr_put_u8(nlh, 1, 7);
            mnl_attr_put_strz(nlh, 2, c"abcd".as_ptr());
            mnl_attr_put_str(nlh, 3, c"abcd".as_ptr());
            let nest = mnl_attr_nest_start(nlh, 4);
            mnl_attr_put_u32(nlh, 5, 9);
            mnl_attr_nest_end(nlh, nest);
            assert_eq!((*nlh).nlmsg_len, 16 + 4 + 8 + 12 + 8 + 4 + 8);
            assert_eq!(mnl_attr_parse(nlh, 4, Some(collect), seen_at), CB_OK);
            assert_eq!(mnl_attr_parse_nested(nest, Some(collect), seen_at), CB_OK);
        }
        let nine = 9u32.to_ne_bytes().to_vec();
        let nested = [&8u16.to_ne_bytes()[..], &5u16.to_ne_bytes(), &nine].concat();
        let wanted: Vec<(u16, Vec<u8>)> = vec![
            (1, vec![7]),
            (2, b"abcd\0".to_vec()),
            (3, b"abcd".to_vec()),
            (4, nested),
            (5, nine),
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn a_callback_can_stop_and_damaged_lengths_end_the_walk() {
        let mut memory = buffer();
        let mut seen: Vec<(u16, Vec<u8>)> = Vec::new();
        let seen_at: *mut c_void = (&raw mut seen).cast();
        unsafe {
            let nlh = mnl_nlmsg_put_header(memory.as_mut_ptr().cast());
            mnl_attr_put_u32(nlh, 99, 1);
            mnl_attr_put_u32(nlh, 2, 1);
            assert_eq!(mnl_attr_parse(nlh, 0, Some(collect), seen_at), CB_STOP);
            let second = nlh.cast::<u8>().add(24).cast::<nlattr>();
            (*second).nla_len = 200; // past the message
            (*nlh.cast::<u8>().add(16).cast::<nlattr>()).nla_type = 1;
            assert_eq!(mnl_attr_parse(nlh, 0, Some(collect), seen_at), CB_OK);
        }
        assert_eq!(seen.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [99, 1]);
    }

    #[test]
    fn validation_knows_lengths_and_terminators() {
        let mut memory = buffer();
        let cases: [(&[u8], c_uint, c_int); 9] = [
            (&[1], 1, 0),
            (&[1, 2], 1, -1),
            (&[1, 2], 3, -1),
            (&[1, 2, 3, 4], 3, 0),
            (b"x\0", 10, 0),
            (b"x", 10, -1),
            (b"", 5, -1),
            (&[1], 8, -1),
            (b"", 77, -1),
        ];
        for (payload, kind, wanted) in cases {
            unsafe {
                let nlh = mnl_nlmsg_put_header(memory.as_mut_ptr().cast());
                mnl_attr_put(nlh, 1, payload.len(), payload.as_ptr().cast());
                let attr = mnl_nlmsg_get_payload(nlh).cast::<nlattr>();
                assert_eq!(mnl_attr_validate(attr, kind), wanted, "{payload:?} as {kind}");
            }
        }
    }

    #[test]
    fn a_message_that_does_not_fit_stays_where_it_was_written() {
        let mut memory = buffer();
        unsafe {
            let batch = mnl_nlmsg_batch_start(memory.as_mut_ptr().cast(), 40);
            assert!(mnl_nlmsg_batch_is_empty(batch));
            let first = mnl_nlmsg_put_header(mnl_nlmsg_batch_current(batch));
            mnl_attr_put_u32(first, 1, 1);
            assert!(mnl_nlmsg_batch_next(batch));
            let second = mnl_nlmsg_batch_current(batch);
            mnl_nlmsg_put_header(second);
            mnl_attr_put_u32(second.cast(), 1, 1);
            assert!(!mnl_nlmsg_batch_next(batch), "48 bytes do not fit 40");
            assert_eq!(mnl_nlmsg_batch_size(batch), 24);
            assert_eq!(mnl_nlmsg_batch_current(batch), second);
            assert_eq!(mnl_nlmsg_batch_head(batch), first.cast());
            mnl_nlmsg_batch_stop(batch);
        }
    }
}

package queue

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt trusts its file. On one that is damaged it panics, in a goroutine of
// its own too, where nobody can recover, or faults in memory that the file does
// not back. So the whole file is read here first, as plain bytes, and given to
// bbolt only if every page that it will touch is what it must be.
//
// A page begins with its number (8 bytes), flags (2), count of elements (2) and
// how many pages more it takes (4), all in the byte order of the machine.
const (
	pageHeader  = 16
	pageBranch  = 0x01
	pageLeaf    = 0x02
	pageFree    = 0x10
	elementSize = 16
	bucketFlag  = 0x01 // of a leaf element: the value is a bucket
	bucketHead  = 16   // root page (0: the page follows), sequence, 8 bytes each
	depthMost   = 32
)

// Offsets in a meta page, after the page's header: magic, version, page size
// and flags (4 bytes each), root page and its sequence, free list, number of
// pages, transaction, checksum (8 each).
const (
	metaPageSize = pageHeader + 8
	metaRoot     = pageHeader + 16
	metaFree     = pageHeader + 32
	metaPages    = pageHeader + 40
	metaTx       = pageHeader + 48
	metaSum      = pageHeader + 56
	metaEnd      = pageHeader + 64

	metaMagic   = 0xED0CDAED
	metaVersion = 2

	noFreeList = ^uint64(0) // in place of its page: the list is not in the file
)

// meta is what a meta page says of its file.
type meta struct {
	pageSize          int64
	root, free, pages uint64
	tx                uint64
}

func parseMeta(page []byte) (meta, bool) {
	order := binary.NativeEndian
	sum := fnv.New64a()
	_, _ = sum.Write(page[pageHeader:metaSum])
	m := meta{
		pageSize: int64(order.Uint32(page[metaPageSize:])),
		root:     order.Uint64(page[metaRoot:]),
		free:     order.Uint64(page[metaFree:]),
		pages:    order.Uint64(page[metaPages:]),
		tx:       order.Uint64(page[metaTx:]),
	}
	ok := order.Uint32(page[pageHeader:]) == metaMagic && order.Uint32(page[pageHeader+4:]) == metaVersion &&
		order.Uint64(page[metaSum:]) == sum.Sum64() &&
		m.pageSize >= 1<<9 && m.pageSize <= 1<<16 && m.pages >= 4 && m.pages < 1<<40
	return m, ok
}

// inspection is one reading of a file.
type inspection struct {
	r    io.ReaderAt
	meta meta
	seen []uint64 // a bit for each page that belongs to something
	head uint64   // of the bucket
	each func(head uint64, key, value []byte) error
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// inspect reads the bbolt file of size bytes in r and calls each for every value,
// in order; key and value are valid during the call. It returns the head. An
// error that wraps ErrCorrupt says that bbolt must not open it.
func inspect(r io.ReaderAt, size int64, each func(head uint64, key, value []byte) error) (head uint64, err error) {
	m, err := newestMeta(r)
	if err != nil {
		return 0, err
	}
	if int64(m.pages)*m.pageSize > size {
		return 0, corrupt("%d bytes long, want %d", size, int64(m.pages)*m.pageSize)
	}
	in := &inspection{r: r, meta: m, seen: make([]uint64, m.pages/64+1), each: each}
	in.mark(0)
	in.mark(1)
	if err := in.freePages(); err != nil {
		return 0, err
	}
	buckets := 0
	err = in.walk(m.root, nil, nil, 0, func(flags uint32, key, value []byte) error {
		if buckets++; flags != bucketFlag || string(key) != bucketName || len(value) < bucketHead {
			return corrupt("%.20q is in it, which is not ours", key)
		}
		return in.bucket(value)
	})
	if err == nil && buckets == 0 {
		err = corrupt("no bucket in it")
	}
	return in.head, err
}

// newestMeta returns the meta page that bbolt will go by.
func newestMeta(r io.ReaderAt) (best meta, err error) {
	// The first meta page says how long pages are, the second begins there. If
	// the first is torn, the usual lengths are tried.
	for _, at := range []int64{0, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16} {
		var page [metaEnd]byte
		if _, err := r.ReadAt(page[:], at); err != nil {
			if err == io.EOF {
				break
			}
			return best, err
		}
		if m, ok := parseMeta(page[:]); ok && (at == 0 || at == m.pageSize) && (best.pageSize == 0 || m.tx > best.tx) {
			best = m
		}
	}
	if best.pageSize == 0 {
		return best, corrupt("no meta page is whole")
	}
	return best, nil
}

// mark notes that a page belongs to something, and reports whether it is the first.
func (in *inspection) mark(page uint64) bool {
	bit := uint64(1) << (page % 64)
	if in.seen[page/64]&bit != 0 {
		return false
	}
	in.seen[page/64] |= bit
	return true
}

// page reads page id with all that it extends over.
func (in *inspection) page(id uint64) (flags, count uint16, data []byte, err error) {
	if id < 2 || id >= in.meta.pages {
		return 0, 0, nil, corrupt("page %d of %d", id, in.meta.pages)
	}
	order := binary.NativeEndian
	at := int64(id) * in.meta.pageSize
	data = make([]byte, in.meta.pageSize)
	if _, err := in.r.ReadAt(data, at); err != nil {
		return 0, 0, nil, err
	}
	more := uint64(order.Uint32(data[12:]))
	if order.Uint64(data) != id || id+more >= in.meta.pages {
		return 0, 0, nil, corrupt("page %d says that it is %d and %d more", id, order.Uint64(data), more)
	}
	for i := range more + 1 {
		if !in.mark(id + i) {
			return 0, 0, nil, corrupt("page %d is used twice", id+i)
		}
	}
	if more > 0 {
		data = append(data, make([]byte, int64(more)*in.meta.pageSize)...)
		if _, err := in.r.ReadAt(data[in.meta.pageSize:], at+in.meta.pageSize); err != nil {
			return 0, 0, nil, err
		}
	}
	return order.Uint16(data[8:]), order.Uint16(data[10:]), data, nil
}

// freePages reads the list of pages that are free, if it is there.
func (in *inspection) freePages() error {
	if in.meta.free == noFreeList {
		return nil
	}
	order := binary.NativeEndian
	flags, count, data, err := in.page(in.meta.free)
	if err != nil {
		return err
	}
	if flags != pageFree {
		return corrupt("the list of free pages is a page with flags %#x", flags)
	}
	ids, n := data[pageHeader:], uint64(count)
	if count == 0xFFFF { // then the first element is the count
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return corrupt("%d free pages in a list of %d bytes", n, len(ids))
	}
	for i := range n {
		if id := order.Uint64(ids[8*i:]); id < 2 || id >= in.meta.pages || !in.mark(id) {
			return corrupt("page %d is free, and something else", id)
		}
	}
	return nil
}

// bucket reads the records of the bucket whose header and, perhaps, only page
// value is.
func (in *inspection) bucket(value []byte) error {
	leaf := func(flags uint32, key, value []byte) error {
		if flags != 0 || len(key) != 8 {
			return corrupt("%.20q is no record of ours", key)
		}
		return in.each(in.head, key, value)
	}
	root := binary.NativeEndian.Uint64(value)
	in.head = binary.NativeEndian.Uint64(value[8:])
	if root != 0 {
		return in.walk(root, nil, nil, 0, leaf)
	}
	page := value[bucketHead:]
	if len(page) < pageHeader || binary.NativeEndian.Uint16(page[8:]) != pageLeaf {
		return corrupt("a bucket without a page")
	}
	return leafElements(page, binary.NativeEndian.Uint16(page[10:]), nil, nil, leaf)
}

// walk reads the tree below page id, whose keys are from low up to high (nil:
// no limit), and calls leaf for each element.
func (in *inspection) walk(id uint64, low, high []byte, depth int, leaf func(flags uint32, key, value []byte) error) error {
	if depth > depthMost {
		return corrupt("the tree is deeper than %d", depthMost)
	}
	flags, count, data, err := in.page(id)
	if err != nil {
		return err
	}
	switch flags {
	case pageLeaf:
		return leafElements(data, count, low, high, leaf)
	case pageBranch:
	default:
		return corrupt("page %d in the tree has flags %#x", id, flags)
	}
	order := binary.NativeEndian
	if count == 0 || pageHeader+elementSize*int(count) > len(data) {
		return corrupt("page %d branches into %d", id, count)
	}
	key := func(i int) ([]byte, error) {
		at := pageHeader + elementSize*i
		return span(data, at, uint64(order.Uint32(data[at:])), uint64(order.Uint32(data[at+4:])))
	}
	var this []byte
	for i := range int(count) {
		if i == 0 {
			if this, err = key(0); err != nil {
				return err
			}
		}
		next := high
		if i+1 < int(count) {
			if next, err = key(i + 1); err != nil {
				return err
			}
		}
		if outside(this, low, high) || next != nil && bytes.Compare(this, next) >= 0 {
			return corrupt("page %d: key %x out of order", id, this)
		}
		child := order.Uint64(data[pageHeader+elementSize*i+8:])
		if err := in.walk(child, this, next, depth+1, leaf); err != nil {
			return err
		}
		this = next
	}
	return nil
}

// leafElements calls leaf for the elements of a leaf page.
func leafElements(data []byte, count uint16, low, high []byte, leaf func(flags uint32, key, value []byte) error) error {
	order := binary.NativeEndian
	if pageHeader+elementSize*int(count) > len(data) {
		return corrupt("%d elements in a page of %d bytes", count, len(data))
	}
	var before []byte
	for i := range int(count) {
		at := pageHeader + elementSize*i
		flags, pos := order.Uint32(data[at:]), uint64(order.Uint32(data[at+4:]))
		keyLen, valueLen := uint64(order.Uint32(data[at+8:])), uint64(order.Uint32(data[at+12:]))
		key, err := span(data, at, pos, keyLen)
		if err != nil {
			return err
		}
		value, err := span(data, at, pos+keyLen, valueLen)
		if err != nil {
			return err
		}
		if outside(key, low, high) || before != nil && bytes.Compare(before, key) >= 0 {
			return corrupt("key %x out of order", key)
		}
		before = key
		if err := leaf(flags, key, value); err != nil {
			return err
		}
	}
	return nil
}

// span returns length bytes of data, pos after the element at at.
func span(data []byte, at int, pos, length uint64) ([]byte, error) {
	from, to := uint64(at)+pos, uint64(at)+pos+length
	if to > uint64(len(data)) {
		return nil, corrupt("an element reaches over the end of its page")
	}
	return data[from:to:to], nil
}

func outside(key, low, high []byte) bool {
	return low != nil && bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0
}

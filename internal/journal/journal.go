// Package journal keeps a map from keys to values in a file, for the next start of the
// program. A change costs what it changes: it is appended. When the file has grown to
// twice of what it held, it is written anew.
//
// The file survives the end of the process at any instruction: a record that was not
// written to its end does not count. Nothing is synced to a disk, as in package
// atomicfile. The map itself is not in memory.
package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"flock.fritzlab.net/flock/internal/sys"
)

// header begins the file and names its format.
const header = "flock journal 1\n"

const (
	// slack is how many bytes of the file may always be out of date.
	slack = 1 << 20
	// most is how many bytes wait at most while the file cannot be written.
	most = 64 << 20
	// longest is how long a key or a value may be, in bytes.
	longest = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt says that a file is not a journal, or has a record that is not what was
// written. A file that could not be read is not called that.
var ErrCorrupt = errors.New("the file is not a whole journal")

// A Journal is for one goroutine.
type Journal struct {
	path string
	file *sys.File
	size int64 // of what is complete in the file
	base int64 // size when the file was last written anew
	buf  []byte
	// aside: the file is at asidePath, because it does not have what was to be written.
	aside bool
}

// Open opens the journal at path, or begins one, and calls f with each key and its
// value. Both are f's to keep. The error is [ErrCorrupt] in the chain if there is a
// file that cannot be read as a journal; what f was called with is of no use then.
func Open(path string, f func(key string, value []byte)) (*Journal, error) {
	file, err := sys.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &Journal{path: path, file: file}
	sys.Remove(j.asidePath()) // that of a program that ended before it could write
	if err := j.load(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	return j, nil
}

func (j *Journal) load(f func(key string, value []byte)) error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		j.buf = append(j.buf, header...)
		return j.Flush()
	}
	last, size, err := j.index()
	if err != nil {
		return err
	}
	live, at := int64(len(header)), int64(len(header))
	if _, err := j.scan(size, func(key, value []byte, n int64) error {
		if last[string(key)] == at && value != nil {
			f(string(key), append([]byte(nil), value...))
			live += n
		}
		at += n
		return nil
	}); err != nil {
		return err
	}
	// What was cut short is in the way of what follows.
	if err := j.file.Truncate(size); err != nil {
		return err
	}
	j.size, j.base = size, live
	return nil
}

// index returns where the last record of each key is, and where the last complete
// record ends.
func (j *Journal) index() (last map[string]int64, size int64, err error) {
	last = map[string]int64{}
	at := int64(len(header))
	size, err = j.scan(1<<62, func(key, value []byte, n int64) error {
		if value == nil {
			delete(last, string(key))
		} else {
			last[string(key)] = at
		}
		at += n
		return nil
	})
	return last, size, err
}

// scan calls f with each complete record within the first size bytes, as the function scan does.
func (j *Journal) scan(size int64, f func(key, value []byte, n int64) error) (end int64, err error) {
	return scan(io.NewSectionReader(j.file, 0, size), f)
}

// scan calls f with each complete record, and the bytes that it takes. A value of nil says that
// the key was deleted. It returns where the last complete record ends.
func scan(from io.Reader, f func(key, value []byte, n int64) error) (end int64, err error) {
	in := &input{from: from}
	r := bufio.NewReaderSize(in, 1<<16)
	begin := make([]byte, len(header))
	if _, err := io.ReadFull(r, begin); in.failed(err) {
		return 0, err
	} else if err != nil || string(begin) != header {
		return 0, ErrCorrupt
	}
	end = int64(len(header))
	var record []byte
	for {
		record = record[:0]
		length := func() (n uint64, err error) {
			if n, err = binary.ReadUvarint(r); err == nil {
				record = binary.AppendUvarint(record, n)
				if n > longest {
					err = ErrCorrupt
				}
			}
			return n, err
		}
		keyLen, err := length()
		var valueLen uint64
		if err == nil {
			valueLen, err = length()
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return end, nil
		}
		if in.failed(err) {
			return 0, err
		}
		if err != nil {
			return 0, fmt.Errorf("record at byte %d: %w", end, ErrCorrupt)
		}
		head := len(record)
		rest := int(keyLen) + int(max(valueLen, 1)-1) + crc32.Size
		if cap(record) < head+rest {
			record = append(make([]byte, 0, 2*(head+rest)), record...)
		}
		record = record[:head+rest]
		if _, err := io.ReadFull(r, record[head:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return end, nil
			}
			return 0, err
		}
		body := record[:len(record)-crc32.Size]
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(record[len(body):]) {
			return 0, fmt.Errorf("record at byte %d: %w", end, ErrCorrupt)
		}
		key := body[head : head+int(keyLen)]
		value := body[head+int(keyLen):]
		if valueLen == 0 {
			value = nil
		}
		n := int64(len(record))
		if err := f(key, value, n); err != nil {
			return 0, err
		}
		end += n
	}
}

// input remembers what failed of the reads: that says nothing about what the file has.
type input struct {
	from io.Reader
	err  error
}

func (in *input) Read(b []byte) (int, error) {
	n, err := in.from.Read(b)
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

// failed says whether err is that of a read.
func (in *input) failed(err error) bool { return in.err != nil && errors.Is(err, in.err) }

// Put sets the value of a key, with the next Flush.
func (j *Journal) Put(key string, value []byte) {
	begin := len(j.buf)
	j.buf = binary.AppendUvarint(j.buf, uint64(len(key)))
	j.buf = binary.AppendUvarint(j.buf, uint64(len(value))+1)
	j.buf = append(j.buf, key...)
	j.buf = append(j.buf, value...)
	j.sum(begin)
}

// Delete removes a key, with the next Flush.
func (j *Journal) Delete(key string) {
	begin := len(j.buf)
	j.buf = binary.AppendUvarint(j.buf, uint64(len(key)))
	j.buf = binary.AppendUvarint(j.buf, 0)
	j.buf = append(j.buf, key...)
	j.sum(begin)
}

func (j *Journal) sum(begin int) {
	j.buf = binary.LittleEndian.AppendUint32(j.buf, crc32.Checksum(j.buf[begin:], castagnoli))
}

// Buffered returns how many bytes the next Flush writes.
func (j *Journal) Buffered() int { return len(j.buf) }

// IsOpen says whether Flush writes. If not, the journal has given up, and the file is gone
// or out of date.
func (j *Journal) IsOpen() bool { return j.file != nil }

// asidePath is where the file is while it is out of date.
func (j *Journal) asidePath() string {
	return filepath.Join(filepath.Dir(j.path), "."+filepath.Base(j.path)+".old")
}

// Flush writes what was changed. After an error it is called again with the next
// change, and meanwhile the file, which is out of date, is none for the next start. If that
// helps nothing for long, it removes the file, and the journal is of no use any more (see
// IsOpen).
func (j *Journal) Flush() error {
	if len(j.buf) == 0 && !j.aside || j.file == nil {
		j.buf = nil
		return nil
	}
	if _, err := j.file.WriteAt(j.buf, j.size); err != nil {
		if !j.aside { // which takes no room
			asideErr := sys.Rename(j.path, j.asidePath())
			j.aside, err = asideErr == nil, errors.Join(err, asideErr)
		}
		if len(j.buf) > most {
			path := j.path
			if j.aside {
				path = j.asidePath()
			}
			err = errors.Join(err, sys.Remove(path), j.file.Close())
			j.file, j.buf, j.aside = nil, nil, false
		}
		return err
	}
	if j.aside {
		if err := sys.Rename(j.asidePath(), j.path); err != nil {
			return err // what was written is written again, at the same place
		}
		j.aside = false
	}
	j.size += int64(len(j.buf))
	if j.buf = j.buf[:0]; cap(j.buf) > slack {
		j.buf = nil
	}
	if j.size > 2*j.base+slack {
		return j.compact()
	}
	return nil
}

// compact writes the file anew, without what is out of date.
func (j *Journal) compact() (err error) {
	last, size, err := j.index()
	if err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(j.path), "."+filepath.Base(j.path)+".new")
	file, err := sys.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// It is as it was, and tried again when it has grown once more.
			j.base = j.size
			err = errors.Join(err, file.Close(), sys.Remove(temp))
		}
	}()
	w := bufio.NewWriterSize(file, 1<<16)
	if _, err := w.WriteString(header); err != nil {
		return err
	}
	written, at := int64(len(header)), int64(len(header))
	var out Journal
	if _, err := j.scan(size, func(key, value []byte, n int64) error {
		here := at
		at += n
		if value == nil || last[string(key)] != here {
			return nil
		}
		out.buf = out.buf[:0]
		out.Put(string(key), value)
		written += int64(len(out.buf))
		_, err := w.Write(out.buf)
		return err
	}); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := sys.Rename(temp, j.path); err != nil {
		return err
	}
	j.file.Close() // nothing waits in it
	j.file, j.size, j.base = file, written, written
	return nil
}

// Close gives the file up. What was not flushed is lost.
func (j *Journal) Close() error {
	if j.file == nil {
		return nil
	}
	return j.file.Close()
}

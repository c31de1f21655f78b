package mediacache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
)

// A file of the disk tier has
//
//	8 bytes  fileMagic, whose last byte is the version
//	4 bytes  the length of the header, big-endian
//	32 bytes the SHA-256 of the 12 bytes before and of the header
//	         the header: a fileHeader as JSON
//	         the body
//
// and ends there. Nothing is used before its digest is checked, so neither a crash nor
// a bad disk can lead to wrong bytes, and fsync is not needed.
const (
	fileMagic     = "spcache\x01"
	filePrefix    = len(fileMagic) + 4 + sha256.Size
	maxFileHeader = 16 << 20
	fileBlock     = 256 << 10 // of a body, with a digest of its own
)

// errDamaged is why a file of the disk tier is not used.
var errDamaged = errors.New("mediacache: the file is damaged or of another object")

// fileKey is the canonical encoding of a key: JSON of these fields. Text is []byte,
// because JSON has only valid UTF-8 in strings.
type fileKey struct {
	Site, Text, Group, Host, Path, Query []byte
	Generation, Slice                    int64
	OverTLS                              bool
}

// fileName names the file of an object: 20 bytes of a digest of the key, four of a digest of
// its group, and the generation. So nothing in a request can lead to another folder, no two
// objects have the same name, and a purge finds its files by their names.
type fileName [sha256.Size]byte

type groupDigest [4]byte

func digestOf(group string) groupDigest {
	sum := sha256.Sum256([]byte(group))
	return groupDigest(sum[:])
}

func (n fileName) group() groupDigest { return groupDigest(n[20:]) }

func (n fileName) generation() int64 { return int64(binary.BigEndian.Uint64(n[24:])) }

func encodeKey(site string, k key) []byte {
	encoded, err := json.Marshal(fileKey{[]byte(site), []byte(k.Text), []byte(k.Group), []byte(k.host), []byte(k.path), []byte(k.query), k.Generation, k.slice, k.overTLS})
	if err != nil {
		panic(err) // such a struct has an encoding
	}
	return encoded
}

func fileNameOf(k key, encoded []byte) fileName {
	n, group := fileName(sha256.Sum256(encoded)), digestOf(k.Group)
	copy(n[20:], group[:])
	binary.BigEndian.PutUint64(n[24:], uint64(k.Generation))
	return n
}

// folder returns the folder of the file, one of 256.
func (n fileName) folder() string { return hex.EncodeToString(n[:1]) }

func (n fileName) path() string { return n.folder() + "/" + hex.EncodeToString(n[:]) }

// parseFileName is the reverse of path, for the part after the folder.
func parseFileName(folder, text string) (n fileName, ok bool) {
	decoded, err := hex.DecodeString(text)
	if err != nil || len(decoded) != len(n) {
		return n, false
	}
	copy(n[:], decoded)
	return n, n.path() == folder+"/"+text
}

// fileHeader is what a file says about its object.
type fileHeader struct {
	Key           []byte // see fileKey
	Status        int
	Fields        [][]byte // names and values in turn
	Length        int64    // of the object
	Stored        int64    // of the body in the file; 0 for a sliced object
	Sliced        bool
	Made, Written int64 // Unix time in nanoseconds
	Freshness     [3]time.Duration
	Digests       []byte // SHA-256 of each block
}

// newFileHeader returns the header of a complete object, still without digests, and the
// size of its file.
func newFileHeader(o *object, encodedKey []byte, now time.Time) (h fileHeader, size int64) {
	h = fileHeader{
		Key: encodedKey, Status: o.status, Length: o.length, Stored: o.length, Sliced: o.sliced, Made: o.made.UnixNano(), Written: now.UnixNano(),
		Freshness: [3]time.Duration{o.freshness.lifetime, o.freshness.staleWhileRevalidate, o.freshness.staleIfError},
	}
	for name, value := range o.fields.each {
		h.Fields = append(h.Fields, []byte(name), []byte(value))
	}
	if h.Sliced {
		h.Stored = 0
	}
	h.Digests = make([]byte, blocksOf(h.Stored)*sha256.Size)
	return h, int64(filePrefix+len(h.encode())) + h.Stored
}

func (h *fileHeader) encode() []byte {
	encoded, err := json.Marshal(h)
	if err != nil {
		panic(err) // such a struct has an encoding
	}
	return encoded
}

// write writes a file of so many bytes. The header comes last, when the digests are
// known, which have the same length as the zeros in their place.
func (h *fileHeader) write(f io.WriterAt, rd *reader, size int64) (err error) {
	if h.Digests, err = writeBlocks(io.NewOffsetWriter(f, size-h.Stored), rd, h.Stored); err != nil {
		return err
	}
	encoded := h.encode()
	_, err = f.WriteAt(append(encodePrefix(encoded), encoded...), 0)
	return err
}

func encodePrefix(header []byte) []byte {
	prefix := binary.BigEndian.AppendUint32([]byte(fileMagic), uint32(len(header)))
	sum := sha256.New()
	sum.Write(prefix)
	sum.Write(header)
	return sum.Sum(prefix)
}

func blocksOf(length int64) int64 { return (length + fileBlock - 1) / fileBlock }

// writeBlocks writes a complete body, and returns the digests of its blocks.
func writeBlocks(w io.Writer, rd *reader, length int64) (digests []byte, err error) {
	digests = make([]byte, 0, blocksOf(length)*sha256.Size)
	sum := sha256.New()
	for offset := int64(0); offset < length; {
		data, _, err := rd.next(offset)
		if err != nil {
			return nil, err
		}
		data = data[:min(int64(len(data)), length-offset, fileBlock-offset%fileBlock)]
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
		sum.Write(data)
		offset += int64(len(data))
		if offset%fileBlock == 0 || offset == length {
			digests = sum.Sum(digests)
			sum.Reset()
		}
	}
	return digests, nil
}

// stored is an object in an open file of the disk tier.
type stored struct {
	file   diskReader
	start  int64 // of the body
	header fileHeader
	drop   func(error) // tells the disk why the file cannot be used
}

// openStored reads the header of a file with so many bytes. The file must be that of the
// key.
func openStored(file diskReader, size int64, encodedKey []byte) (*stored, error) {
	prefix := make([]byte, filePrefix)
	if _, err := file.ReadAt(prefix, 0); err != nil {
		return nil, asDamage(err)
	}
	length := int64(binary.BigEndian.Uint32(prefix[len(fileMagic):]))
	if length > min(maxFileHeader, size-int64(filePrefix)) {
		return nil, errDamaged
	}
	encoded := make([]byte, length)
	if _, err := file.ReadAt(encoded, int64(filePrefix)); err != nil {
		return nil, asDamage(err)
	}
	s := &stored{file: file, start: int64(filePrefix) + length}
	if !bytes.Equal(prefix, encodePrefix(encoded)) || json.Unmarshal(encoded, &s.header) != nil {
		return nil, errDamaged
	}
	h := s.header
	if !bytes.Equal(h.Key, encodedKey) || h.Stored != size-s.start || int64(len(h.Digests)) != blocksOf(h.Stored)*sha256.Size ||
		h.Length < h.Stored || h.Sliced != (h.Length != h.Stored) || len(h.Fields)%2 != 0 {
		return nil, errDamaged
	}
	return s, nil
}

// asDamage tells a file that is too short from a disk that fails.
func asDamage(err error) error {
	if errors.Is(err, io.EOF) {
		return errDamaged
	}
	return err
}

// block reads the block at an offset into a buffer of fileBlock bytes, and checks it.
func (s *stored) block(buffer []byte, offset int64) ([]byte, error) {
	block := buffer[:min(fileBlock, s.header.Stored-offset)]
	if _, err := s.file.ReadAt(block, s.start+offset); err != nil {
		return nil, asDamage(err)
	}
	sum := sha256.Sum256(block)
	if at := offset / fileBlock * sha256.Size; !bytes.Equal(sum[:], s.header.Digests[at:at+sha256.Size]) {
		return nil, errDamaged
	}
	return block, nil
}

// object returns the object, whose body is still to be filled.
func (s *stored) object(path string, b *body, now time.Time) *object {
	h := http.Header{}
	for i := 0; i < len(s.header.Fields); i += 2 {
		name := string(s.header.Fields[i])
		h[name] = append(h[name], string(s.header.Fields[i+1]))
	}
	o := newObject(s.header.Status, h, path, b)
	o.length, o.sliced, o.keep, o.made = s.header.Length, s.header.Sliced, true, time.Unix(0, s.header.Made)
	f := s.header.Freshness
	if !now.Before(time.Unix(0, s.header.Written)) { // else the clock has been set back, and the age is unknown
		o.freshness = freshness{lifetime: f[0], staleWhileRevalidate: f[1], staleIfError: f[2]}
	}
	return o
}

package nbd

// Handshake, section "Fixed newstyle negotiation".
const (
	magicServer = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options and their replies, section "Option types" and "Option reply types".
const (
	optGo              = 7
	optStructuredReply = 8
	optSetMetaContext  = 10

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4
	repErrorBit    = 1 << 31

	infoExport    = 0
	infoBlockSize = 3
)

// Transmission flags, section "Transmission flags".
const (
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
)

// Requests and replies, sections "Request types", "Command flags" and "Structured reply types".
const (
	magicRequest         = 0x25609513
	magicSimpleReply     = 0x67446698
	magicStructuredReply = 0x668e33ef

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2

	chunkFlagDone = 1 << 0

	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkErrorBit    = 1 << 15
	chunkError       = chunkErrorBit + 1
	chunkErrorOffset = chunkErrorBit + 2

	requestHeaderSize    = 28
	simpleReplySize      = 16
	structuredHeaderSize = 20
)

// BaseAllocation is the metadata context that every server of block status has, section
// `"base:" metadata context`.
const BaseAllocation = "base:allocation"

// Flags of an Extent of BaseAllocation.
const (
	// FlagHole says that no storage is allocated. It says nothing about the content.
	FlagHole = 1 << 0
	// FlagZero says that the extent reads as zeroes.
	FlagZero = 1 << 1
)

// FlagDirty is the flag of an Extent of one of QEMU's dirty bitmaps (qemu:dirty-bitmap:NAME,
// docs/interop/nbd.txt of QEMU): it has changed.
const FlagDirty = 1 << 0

// DirtyBitmap returns the name of the metadata context of a dirty bitmap that QEMU exports.
func DirtyBitmap(name string) string { return "qemu:dirty-bitmap:" + name }

// AllocationDepth is QEMU's metadata context whose extents have as flags the layer of the image
// chain that they come from (docs/interop/nbd.txt of QEMU): 0 for none, 1 for the topmost. An
// explicit zero counts as allocated.
const AllocationDepth = "qemu:allocation-depth"

// Limits on what a server may send, so that a broken one costs no memory.
const (
	// maxString is the longest string the protocol allows, in bytes.
	maxString = 4096
	// maxOptionReply bounds one reply to an option, in bytes.
	maxOptionReply = 64 << 10
	// maxOptionReplies bounds how many replies one option may get.
	maxOptionReplies = 256
	// maxExtents bounds the descriptors in one block status chunk.
	maxExtents = 1 << 20
	// maxErrorChunk bounds an error chunk, in bytes.
	maxErrorChunk = 64 << 10
	// maxPieces bounds the separate pieces of a read at any time; servers send them in order.
	maxPieces = 1024
)

// defaultMaxBlock is the largest payload a client may send to a server that does not say,
// section "Block size constraints", in bytes.
const defaultMaxBlock = 32 << 20

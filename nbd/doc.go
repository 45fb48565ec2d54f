// Package nbd is the server side of the NBD protocol (proto.md): fixed newstyle
// negotiation, TLS by STARTTLS, and the transmission phase, in front of
// anything that can be read at an offset.
//
// The way through the package is that of a connection:
//
//	server.go      accepts it
//	handshakes.go  bounds how many may be unfinished at once
//	conn.go        runs it through its phases, and ends it
//	negotiate.go   haggles; one file opt_*.go for each option
//	export.go      finds the export, if this client may use it, and opens it
//	backend.go     finds out what the export can do
//	transmit.go    reads requests
//	validate.go    refuses the wrong ones
//	handle.go      works on the others, many at a time; read.go, blockstatus.go
//	reply.go       answers
//
// The package knows no cryptography and no kind of storage: an encrypted
// connection is what [Server.StartTLS] makes of a plain one, and data come from
// a [Backend].
//
// # Conformance
//
// Each requirement of proto.md (H: handshake, T: TLS, S: sizes, X: transmission)
// and of its extension for extended headers (E), and the test that would fail
// without it. A test of this package checks the table.
//
//	H1   TestH1NoDelay
//	H2   TestH2Greeting
//	H3   TestH3UnknownClientFlagsEndTheConnection
//	H4   TestH4BadOptionMagicEndsTheConnection
//	H5   TestH5UnknownOption
//	H6   TestH6RepliesNameTheirOption
//	H7   TestH7Names
//	H8   TestH8Abort
//	H9   TestH9List TestListOfThousands
//	H10  TestH10ExportName
//	H11  TestH11InfoLengthsMustFit
//	H12  TestH12InfoAndGo TestInfoDoesNotOutliveItself
//	H13  TestH13UnknownInformationIsIgnored
//	H14  TestH14GoRepeatsInfo
//	H15  TestH15NoZeroesAfterGo
//	H16  TestH16EmptyNameIsTheDefaultExport
//	H17  TestH17StructuredReply
//	H18  TestH18MetaContextsNeedStructuredReplies
//	H19  TestH19MetaContexts
//	H20  TestH20ContextsBelongToTheirExport
//	H21  TestListThatFails TestT3NoTLS
//	H22  TestH22ShutdownWhileHaggling
//	H23  not tested: a list of what servers may not do; each place that ends a
//	     connection says why it may
//	H24  TestH24NoOldstyle
//	T1   not tested: the mode is what StartTLS and ForceTLS say, which do not change
//	T2   TestT2OldClientsGetNoTLS; but where TLS is forced such a client is
//	     disconnected, not served in plain text
//	T3   TestT3NoTLS
//	T4   TestT4StartTLSWithData
//	T5   TestT5StartTLS
//	T6   TestT6SecondStartTLS
//	T7   TestT7ForcedTLSRefusesEverythingBefore
//	T8   TestT8ExportNameBeforeTLSEndsTheConnection
//	T9   TestT9NoTLSReqdInsideTLS
//	T10  TestT10SelectiveTLSHidesExports TestT10MetaContextsDoNotTellExports
//	T11  TestT11SelectiveTLSRefusesOnlyExports
//	T12  TestT12TLSForgetsWhatWasAgreedOn
//	T13  TestT13FailedHandshakeEndsTheConnection
//	T14  TestT5StartTLS TestT14NoOldTLS
//	T15  TestT15PipelinedBytesBehindStartTLS
//	T16  TestT16CloseNotify
//	T17  not tested: advice to operators, in the README
//	T18  not tested: left to implementations; see TestClientCertificateReachesTheExport
//	S1   TestS1DefaultBlockSizes TestS1ThirtyTwoMiB
//	S2   TestS2ImpossibleBlockSizesAreNotServed
//	S3   TestS3UnusualBlockSizesAreAlwaysSent
//	S4   not tested: BLOCK_SIZE_REQD is never sent; clients that ask for no sizes
//	     are served, and get EINVAL for what is not aligned
//	S5   TestS5UnalignedRequests
//	S6   TestS6LargePayloads
//	S7   TestS7LargestChunk
//	S8   TestS8LongTrimAndZero
//	S9   TestS9ZeroLength
//	S10  TestS10PastTheEnd
//	X1   TestX1FlagsFollowAbilities
//	X2   TestX2ReadOnly
//	X3   TestX3RepliesOvertakeOneAnother
//	X4   TestX4OnlyStructuredReplies
//	X5   TestX5ErrorsComeWithText
//	X6   TestX6DoneIsOnTheLastChunk
//	X7   TestX7ShortReadsAndWritesAreErrors TestX7ErrorInTheMiddleOfAReply
//	X8   TestX8SparseRead
//	X9   TestX9DontFragment
//	X10  TestX8SparseRead TestX6DoneIsOnTheLastChunk
//	X11  backends/file.TestFlushCoversOtherConnections
//	X12  TestX12FUA
//	X13  backends/file.TestFlushCoversOtherConnections
//	X14  backends/file.TestBlockDeviceTrimAndZero
//	X15  TestX15ZeroesAreWrittenIfNeedBe TestX15NoHoleReachesTheBackend
//	     TestX15FastZero backends/file.TestTrimAndZeroGiveStorageBack
//	X16  TestX16Cache
//	X17  TestX17BlockStatus TestX17ExtentsOfABackend
//	X18  TestX18NoExtentsIsAllData
//	X19  TestX19UnknownCommandsAndFlags
//	X20  TestX20Errors
//	X21  TestX21DiscWaitsForWhatIsOutstanding
//	X22  TestX22Shutdown
//	X23  TestX23BadRequestMagic
//	E1   TestE1ExtendedHeaders TestT12TLSForgetsWhatWasAgreedOn
//	E2   TestE2NoExportName
//	E3   TestE3E5ExtendedRequestsAndReplies TestE3WriteWithoutPayloadLen
//	E4   TestE4Payloads
//	E5   TestE3E5ExtendedRequestsAndReplies
//	E6   TestE6ExtendedBlockStatus
//	E7   TestE7BlockStatusPayload
//	E8   TestE3E5ExtendedRequestsAndReplies
//
// The RESIZE extension is not implemented; no server does.
package nbd

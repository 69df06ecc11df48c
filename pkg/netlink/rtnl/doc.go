// Package rtnl speaks rtnetlink: links, addresses, neighbours and routes as
// values, requests in batches, dumps that are consistent or an error.
//
// A batch is one write and usually one read, however many requests it holds: the
// kernel works through them in order, answers each that fails, and acknowledges
// the last. It does not stop at the first error, so a request that must not be
// made without an earlier one does not belong in the same batch.
//
// Only what wiring needs is here. What the kernel adds that this package does
// not know is skipped when read.
package rtnl

// Package nft speaks nf_tables over netlink: tables, sets, chains and rules as
// values, changes in transactions, dumps that are consistent or an error.
//
// A [Batch] is one transaction: the kernel does all of it, between two packets,
// or nothing. It is one write and one read. What is in the kernel stays there
// when the [Conn] is closed, so that what protects pods outlives who put it there.
//
// Only what flock's table needs is here, in terms of nft(8): a [Rule] is what
// "nft --debug=netlink" prints. Nothing lists a ruleset; only the elements of one
// set, or one counter, are ever read.
package nft

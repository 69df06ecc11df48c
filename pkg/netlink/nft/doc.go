// Package nft speaks nf_tables over netlink: tables, sets, chains and rules as
// values, changes in transactions, dumps that are consistent or an error.
//
// A [Batch] is one transaction: the kernel does all of it, between two packets,
// or nothing. It is one write and one read. What is in the kernel stays there
// when the [Conn] is closed, so that what protects pods outlives who put it there.
//
// Only what flock's tables need is here, in terms of nft(8): a [Rule] is what
// "nft --debug=netlink" prints. A table is read as definitions that can be compared
// with those of the values that it was made of, so that a change by another hand is
// found.
package nft

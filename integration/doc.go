// Package integration drives the built binary as viewers, players and attackers
// would, in front of an origin that records what reaches it. It is a module of
// its own, so that what only tests need stays out of the product's go.mod.
//
// `make integration` in the folder above builds the binary and runs it.
package integration

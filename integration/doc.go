// Package integration tests the built binary as viewers, players and attackers use it, in
// front of an origin that records every request. It is a module of its own, so that its
// dependencies stay out of the product's go.mod. Tests whose names begin with TestLong
// run in `make test-long` only.
//
// `make integration` in the folder above builds the binary and runs it.
package integration

// SPDX-License-Identifier: Apache-2.0

// Package clients lets programs that people use reach servers by name, below a
// guard, as its daemon finds them on a machine: with resolvers and servers as
// people use them, and certificates that the clients check.
package clients

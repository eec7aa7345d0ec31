// SPDX-License-Identifier: Apache-2.0

//go:build race

package soak

// raceDetector says that the daemon is to be built with it too.
const raceDetector = true

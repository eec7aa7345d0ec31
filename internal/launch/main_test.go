// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"os"
	"testing"
)

// TestMain makes the test binary its own stage.
func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

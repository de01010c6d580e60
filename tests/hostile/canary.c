// SPDX-License-Identifier: Apache-2.0
// What must never be run: leaves a mark where it was.
#include <fcntl.h>

int main(void) {
  return open("/ran", O_CREAT | O_WRONLY | O_CLOEXEC, 0600) < 0;
}

/** The {@code moe} command: parses options, calls the library, prints. No other package prints. */
@NullMarked
package org.tornadomoe.cli;

import org.jspecify.annotations.NullMarked;

/** The {@code moe} command: picks options apart, calls the library, prints. Nothing else in the library prints. */
@NullMarked
package org.tornadomoe.cli;

import org.jspecify.annotations.NullMarked;

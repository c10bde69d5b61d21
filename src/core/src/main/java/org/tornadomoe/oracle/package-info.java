/** Chooses the kernel class that serves a layer. */
@NullMarked
package org.tornadomoe.oracle;

import org.jspecify.annotations.NullMarked;

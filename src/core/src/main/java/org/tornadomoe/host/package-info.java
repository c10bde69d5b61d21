/** Computation on the CPU's cores: threads, vector and scalar arithmetic, and the router that runs on them. */
@NullMarked
package org.tornadomoe.host;

import org.jspecify.annotations.NullMarked;

/** The API: {@link org.tornadomoe.MoeLayer} loads an int8 MoE layer, runs it and closes it. */
@NullMarked
package org.tornadomoe;

import org.jspecify.annotations.NullMarked;

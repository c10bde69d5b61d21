/** Model families: what a configuration's fields mean, and the names and shapes of a layer's tensors. */
@NullMarked
package org.tornadomoe.checkpoint.family;

import org.jspecify.annotations.NullMarked;

// What a number says: pointed at by its title, tapped or focused at the foot of the page.
const why=document.getElementById('why');
const tell=cell=>{why.textContent=cell.title;why.hidden=false};
document.addEventListener('click',e=>{const cell=e.target.closest('[data-note]');
if(cell)tell(cell);else if(!why.contains(e.target))why.hidden=true});
document.addEventListener('keydown',e=>{if(e.key==='Escape')why.hidden=true});
document.addEventListener('focusin',e=>{if(why.contains(e.target))return;const cell=e.target.closest('td[data-note]');
if(cell&&e.target.matches(':focus-visible'))tell(cell);else why.hidden=true});
// There the tap does not leave the page: the note has the way to the answers at its end.
document.addEventListener('click',e=>{const to=e.target.closest('td[data-note] a');
if(to&&matchMedia('(hover:none)').matches){e.preventDefault();const a=document.createElement('a');
a.href=to.href;a.textContent='read the answers';why.append('\n',a)}});
// What is scrolled can be scrolled by keys.
const scrolls=all=>all.forEach(box=>{if(box.scrollHeight>box.clientHeight)box.tabIndex=0});
scrolls(document.querySelectorAll('.warn ul'));
document.addEventListener('toggle',e=>scrolls(e.target.querySelectorAll('pre')),true);
// Arrow keys go from cell to cell of a table.
const reach=cell=>cell&&(cell.querySelector('a')||(cell.hasAttribute('tabindex')?cell:null));
document.addEventListener('keydown',e=>{const cell=e.target.closest&&e.target.closest('td');
const step={ArrowLeft:[-1,0],ArrowRight:[1,0],ArrowUp:[0,-1],ArrowDown:[0,1]}[e.key];
if(!cell||!step||e.altKey||e.ctrlKey||e.metaKey)return;
let row=cell.parentElement,at=cell.cellIndex,to=null;
do{at+=step[0];row=step[1]<0?row.previousElementSibling:step[1]>0?row.nextElementSibling:row;
if(!row||!row.cells[at])break;to=reach(row.cells[at])}while(!to);
if(to){e.preventDefault();to.focus()}});
// A heading sorts its table: first the largest on top, then the smallest, then as it was. "<0.001" is below all p-values.
const valueOf=cell=>{const text=cell.textContent.replace(/ ±.*/,'').replace(/,/g,'').replace(/−|</,'-').trim();
return text===''||text==='–'?null:isFinite(text)?Number(text):text.toLowerCase()};
const compare=(x,y)=>typeof x===typeof y?(x<y?-1:x>y?1:0):typeof x==='number'?-1:1;
const SORTS=['descending','ascending','none'];
for(const head of document.querySelectorAll('table.sorts thead th[data-column]')){
const table=head.closest('table'),body=table.tBodies[0],place=Number(head.dataset.column);
const rows=[...body.rows],kept=rows.filter(row=>row.className==='foot');
const button=document.createElement('button');button.type='button';button.append(...head.childNodes);head.append(button);
button.addEventListener('click',()=>{
const next=SORTS[(SORTS.indexOf(head.getAttribute('aria-sort')||'none')+1)%3];
for(const other of table.querySelectorAll('[aria-sort]'))other.removeAttribute('aria-sort');
let order=rows.filter(row=>!kept.includes(row));
if(next!=='none'){head.setAttribute('aria-sort',next);
const values=new Map(order.map(row=>[row,valueOf(row.cells[place])]));
order.sort((a,b)=>{const x=values.get(a),y=values.get(b);
return x===null||y===null?(x===null)-(y===null):(next==='ascending'?1:-1)*compare(x,y)})}
body.append(...order,...kept)})}
// Paper is not scrolled: a table of many columns is printed in parts, each with the labels of its rows.
const MOST_COLUMNS=10;
const partOf=(table,from,to)=>{const part=table.cloneNode(true);part.classList.add('part');
for(const row of part.rows){let at=0;for(const cell of [...row.cells]){if(cell.classList.contains('stub'))continue;
const first=at;at+=cell.colSpan;const kept=Math.min(at,to)-Math.max(first,from);
if(kept>0)cell.colSpan=kept;else cell.remove()}}return part};
const whole=()=>{document.querySelectorAll('table.part').forEach(part=>part.remove());
document.querySelectorAll('table.parted').forEach(table=>table.classList.remove('parted'))};
addEventListener('beforeprint',()=>{whole();for(const table of document.querySelectorAll('table.sorts')){
const count=table.tBodies[0].rows.length?table.tBodies[0].rows[0].cells.length-1:0;
if(count<=MOST_COLUMNS)continue;const parts=Math.ceil(count/MOST_COLUMNS),size=Math.ceil(count/parts);
const all=Array.from({length:parts},(_,k)=>partOf(table,k*size,Math.min(count,(k+1)*size)));
table.after(...all);table.classList.add('parted')}});
addEventListener('afterprint',whole);
